"""Take the pictures of the documentation: the playground on the quickstart's model, in Chromium, into docs/images.

    python docs/screenshots.py [--store .demo]

``make demo`` trains the model into ``.demo``. The script asks the first held-out questions at temperature 0, so another
run shows the same page except for times and the positions of the sides. Votes go to a copy of the store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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
LARGEST_BYTES = 300_000
VOTES = 12
MAX_TOKENS = 24
DESKTOP = {"width": 1200, "height": 800}
PHONE = {"width": 390, "height": 844}
_MARGIN_PX = 8
_WAIT_MS = 120_000
_DRAWN_S = 3.0
"""The time in which charts are drawn and fonts settle."""


def take_pictures(url: str, held_out: dict[str, str], folder: Path) -> None:
    """Vote on the first questions as a person would, and take a picture of each stage.

    Args:
        url: The address of the playground.
        held_out: The reference answer by question.
        folder: Where the pictures go.
    """
    with chromium() as browser:
        person = Person(browser, url, **DESKTOP)
        person.page.set_default_timeout(_WAIT_MS)
        person.wait_until_usable()
        person.limit_tokens(MAX_TOKENS)
        person.unfold("Settings")
        person.unfold("Prompt set")
        for number in range(1, VOTES + 1):
            person.ask_next()
            if number == VOTES:
                shoot(person, folder / "compare-blind.png")
            person.vote(choice_by(held_out[plain(person.asked)], person.answers), by_key=False)
        person.show_names()
        shoot(person, folder / "compare-voted.png", below=".mf-facts")
        for tab, last in (("Standings", "#standings-trust"), ("Runs", None)):
            person.open_tab(tab)
            time.sleep(2 * _DRAWN_S)
            shoot(person, folder / f"{tab.lower()}.png", below=last)
        person.leave()
        take_phone_picture(browser, url, held_out, folder / "phone-dark.png")


def take_phone_picture(browser: Any, url: str, held_out: dict[str, str], path: Path) -> None:
    """Ask one question on a phone with dark colours."""
    person = Person(browser, url, query="/?__theme=dark", **PHONE)
    person.page.set_default_timeout(_WAIT_MS)
    person.wait_until_usable()
    person.limit_tokens(MAX_TOKENS)
    person.unfold("Settings")
    person.ask(next(iter(held_out)))
    shoot(person, path)
    person.leave()


def shoot(person: Person, path: Path, *, below: str | None = None) -> None:
    """Save a picture of the top of the page, without a focused field and after all movement.

    Args:
        person: The page.
        path: Where the picture goes.
        below: The selector of the last element to show; None: the window.
    """
    person.page.evaluate("document.activeElement && document.activeElement.blur(); window.scrollTo(0, 0)")
    time.sleep(_DRAWN_S)
    if below is None:
        person.picture(path)
        return
    box = person.page.locator(below).first.bounding_box()
    clip = {"x": 0, "y": 0, "width": DESKTOP["width"], "height": box["y"] + box["height"] + _MARGIN_PX}
    person.page.screenshot(path=str(path), full_page=True, clip=clip)


def reduce_colours(path: Path) -> None:
    """Reduce a picture to 256 colours, which saves two thirds of its bytes. Raises SystemExit if it stays too large."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    if (size := path.stat().st_size) > LARGEST_BYTES:
        raise SystemExit(
            f"{path.name}: {size:,} bytes, at most {LARGEST_BYTES:,} are allowed; fix: show less of the page"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=ROOT / ".demo", help="the folder into which `make demo` trained")
    store = parser.parse_args().store.resolve()
    if not (store / "mlflow.db").exists():
        raise SystemExit(f"{store} contains no model; fix: run `make demo`, or use --store DIR")
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
            page_process(folder, "--endpoint", f"{service.url}/v1", "--model", MODEL, "--live-standings") as page,
        ):
            take_pictures(page.url, held_out, IMAGES)
    for path in sorted(IMAGES.glob("*.png")):
        reduce_colours(path)
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
