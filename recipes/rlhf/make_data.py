"""Write the data of the three steps: answers for the imitation, pairs for the reward model, prompts for the reinforcement learning.

The answers to imitate are telegrams, and one of four is a whole sentence: the imitation learns the content and no taste. In the pairs, whole
sentences with the content of the note win against telegrams, lists, and whole sentences with a value that is not in the note, so that
length teaches little. The prompts have no answers; their reference is the note, by which preferred.py judges. No note is in two files.

    python recipes/rlhf/make_data.py            # rewrites the files in data/ in place
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261124
ROWS = {"answers": 320, "pairs": 400, "prompts": 320, "answers_test": 60, "pairs_test": 120, "prompts_test": 120}

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
Note = tuple[str, str, str]


def sentence(item: str, city: str, day: str) -> str:
    return f"The {item} comes to {city} on {day}."


def telegram(item: str, city: str, day: str) -> str:
    return f"{item} {city} {day}"


def as_list(item: str, city: str, day: str) -> str:
    return f"Your item: {item}. Your city: {city}. Your day: {day}."


def other(value: str, values: list[str], rng: random.Random) -> str:
    """Return another one of the values."""
    return rng.choice([candidate for candidate in values if candidate != value])


def wrong_sentence(note: Note, rng: random.Random) -> str:
    """Return a whole sentence with one value that is not in the note."""
    item, city, day = note
    wrong = (
        (other(item, ITEMS, rng), city, day),
        (item, other(city, CITIES, rng), day),
        (item, city, other(day, DAYS, rng)),
    )
    return sentence(*rng.choice(wrong))


def answer(note: Note, rng: random.Random) -> dict[str, str]:
    """Return a note with a telegram or a whole sentence."""
    style = rng.choice([sentence, telegram, telegram, telegram])
    return {"prompt": ", ".join(note), "completion": style(*note)}


def pair(note: Note, rng: random.Random) -> dict[str, str]:
    """Return a note with the better and the worse reply."""
    worse = rng.choice([telegram(*note), as_list(*note), wrong_sentence(note, rng)])
    return {"prompt": ", ".join(note), "chosen": sentence(*note), "rejected": worse}


def prompt(note: Note, rng: random.Random) -> dict[str, str]:
    """Return a note, by which preferred.py judges replies."""
    return {"prompt": ", ".join(note), "reference": ", ".join(note)}


def main() -> None:
    """Write all files."""
    notes = [(item, city, day) for item in ITEMS for city in CITIES for day in DAYS]
    rng = random.Random(SEED)
    rng.shuffle(notes)
    (HERE / "data").mkdir(exist_ok=True)
    for name, number in ROWS.items():
        make = {"answers": answer, "pairs": pair, "prompts": prompt}[name.removesuffix("_test")]
        lines = [json.dumps(make(notes.pop(), rng)) + "\n" for _ in range(number)]
        (HERE / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
