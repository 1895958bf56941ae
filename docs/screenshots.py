"""Makes the README's pictures: the playground on the quickstart's model, in Debian's Chromium, into docs/images.

    python docs/screenshots.py [--store .demo]

The model is trained by ``make demo`` into ``.demo``; the pictures rest on its answers to the first held-out questions, asked
at temperature 0, so that another run shows the same but for times and places of the sides. Votes go to a copy of that store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from chromium import chromium
from playground_browser import Person
from playground_models import plain, references
from playground_page import page_process
from playground_votes import choice_by
from serving_process import serving

ROOT = Path(__file__).resolve().parents[1]
MODEL = "quickstart"
IMAGES = ROOT / "docs" / "images"
LARGEST_BYTES = 150_000
VOTES = 12
PHONE = {"width": 390, "height": 844}
_DRAWN_S = 3.0
"""In which charts are drawn, and fonts settle."""


def pictures(url: str, held_out: dict[str, str], folder: Path) -> None:
    with chromium() as opened:
        person = Person(opened, url)
        person.wait_until_usable()
        person.limit_tokens(24)
        person.unfold("Settings")
        person.unfold("Prompt set")
        for number in range(VOTES):
            person.ask_next()
            if number == VOTES - 1:
                shoot(person, folder / "compare-blind.png")
            person.vote(choice_by(held_out[plain(person.asked)], person.answers), by_key=False)
        person.show_names()
        shoot(person, folder / "compare-voted.png")
        for tab in ("Standings", "Runs"):
            person.open_tab(tab)
            time.sleep(2 * _DRAWN_S)
            shoot(person, folder / f"{tab.lower()}.png")
        person.leave()
        phone = Person(opened, url, query="/?__theme=dark", **PHONE)
        phone.wait_until_usable()
        phone.ask(next(iter(held_out)))
        shoot(phone, folder / "phone-dark.png")
        phone.leave()


def shoot(person: Person, path: Path) -> None:
    """From the page's top, nothing focused, nothing moving."""
    person.page.evaluate("document.activeElement && document.activeElement.blur(); window.scrollTo(0, 0)")
    time.sleep(_DRAWN_S)
    person.picture(path)


def fewer_colours(path: Path) -> None:
    """A palette of 256 is enough for a page, and a third of the bytes. Raises SystemExit for one that stays too large."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if (size := path.stat().st_size) > LARGEST_BYTES:
        raise SystemExit(
            f"{path.name}: {size:,} bytes; fix: show less, up to {LARGEST_BYTES:,} belong in the repository"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=ROOT / ".demo", help="where the quickstart was trained")
    store = parser.parse_args().store.resolve()
    if not (store / "mlflow.db").exists():
        raise SystemExit(f"{store}: no model there; fix: make demo, or --store DIR")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(store / "mlflow.db", folder / "mlflow.db")
        uri = f"sqlite:///{folder}/mlflow.db"
        os.environ |= {
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_FINETUNE_HOME": f"{folder}/home",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HF_HUB_OFFLINE": "1",
        }
        held_out = references(ROOT / "recipes" / "quickstart" / "data" / "test.jsonl")
        with (
            serving(folder, uri, MODEL, "--engine", "transformers") as service,
            page_process(folder, "--endpoint", f"{service.url}/v1", "--model", MODEL) as page,
        ):
            pictures(page.url, held_out, IMAGES)
    for path in sorted(IMAGES.glob("*.png")):
        fewer_colours(path)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
