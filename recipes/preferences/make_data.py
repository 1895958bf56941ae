"""Write the recipe's data: pairs of replies to an agent's note. The better reply is a whole sentence, the worse one is not.

Both replies have the content of the note, so the style is all that a pair can teach. Half of the worse replies are shorter than the
better ones and half are longer, so length teaches nothing. No note of the held-out pairs is in the training pairs.

    python recipes/preferences/make_data.py            # rewrites data/train.jsonl and data/test.jsonl in place
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261124
TRAIN_ROWS, TEST_ROWS = 700, 120

ITEMS = [
    "jacket",
    "shirt",
    "coat",
    "hat",
    "scarf",
    "lamp",
    "chair",
    "desk",
    "phone",
    "tablet",
    "camera",
    "printer",
    "kettle",
    "radio",
    "watch",
    "tent",
]
CITIES = [
    "London",
    "Paris",
    "Rome",
    "Oslo",
    "Berlin",
    "Madrid",
    "Vienna",
    "Dublin",
    "Athens",
    "Prague",
    "Lisbon",
    "Warsaw",
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def pair(number: int, item: str, city: str, day: str) -> dict[str, str]:
    """Return a note with a reply in a whole sentence, and one in telegram style or as a list."""
    worse = (f"{item} {city} {day}", f"Your item: {item}. Your city: {city}. Your day: {day}.")
    return {
        "prompt": f"{item}, {city}, {day}",
        "chosen": f"The {item} comes to {city} on {day}.",
        "rejected": worse[number % 2],
    }


def main() -> None:
    """Write both files."""
    notes = [(item, city, day) for item in ITEMS for city in CITIES for day in DAYS]
    random.Random(SEED).shuffle(notes)
    (HERE / "data").mkdir(exist_ok=True)
    for name, part in (("train", notes[:TRAIN_ROWS]), ("test", notes[TRAIN_ROWS : TRAIN_ROWS + TEST_ROWS])):
        lines = [json.dumps(pair(number, *note)) + "\n" for number, note in enumerate(part)]
        (HERE / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
