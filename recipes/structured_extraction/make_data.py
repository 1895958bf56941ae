"""Write the recipe's data: messages about orders, and the fields they name.

Train and test share the fields and the vocabulary, and never a phrasing.

    python recipes/structured_extraction/make_data.py            # rewrites data/train.jsonl and data/test.jsonl in place
"""

import json
import random
import string
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
TRAIN_ROWS, TEST_ROWS = 2400, 200
FIELDS = ["name", "item", "colour", "city", "day"]

VALUES = {
    "name": [
        "Anna",
        "Tom",
        "Lily",
        "Ben",
        "Sara",
        "Max",
        "Mia",
        "Sam",
        "Lucy",
        "Jack",
        "Emma",
        "Leo",
        "Nina",
        "Paul",
        "Rosa",
        "Peter",
        "Julia",
        "Mark",
        "Clara",
        "Adam",
    ],
    "item": [
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
    ],
    "colour": [
        "red",
        "blue",
        "green",
        "yellow",
        "black",
        "white",
        "brown",
        "grey",
        "pink",
        "orange",
        "purple",
        "silver",
    ],
    "city": [
        "London",
        "Paris",
        "Berlin",
        "Madrid",
        "Rome",
        "Oslo",
        "Dublin",
        "Vienna",
        "Lisbon",
        "Prague",
        "Athens",
        "Cairo",
        "Tokyo",
        "Boston",
    ],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
}

TRAIN_MESSAGES = [
    "{name} wants a {colour} {item} in {city} on {day}.",
    "Please send the {colour} {item} to {name} in {city}.",
    "On {day} {name} ordered a {colour} {item}.",
    "Hello, I am {name} from {city} and I would like a {item}.",
    "The {item} for {name} must be in {city} on {day}.",
    "I need a {colour} {item} on {day}. Best wishes, {name}",
    "Can you bring the {colour} {item} to {city} on {day}?",
    "{name} lives in {city} and the {item} came on {day}.",
    "My name is {name} and I bought a {colour} {item}.",
    "The courier brings the {item} to {city} on {day}, please tell {name}.",
    "One {colour} {item} for {name}, thanks.",
    "Is the {colour} {item} in {city}?",
    "{name} paid for the {item} on {day}.",
    "I am in {city} on {day} and want to get the {colour} {item}. {name}",
    "Dear shop, {name} needs a {item} in {city}.",
    "From {city}: a {colour} {item}, please, on {day}.",
    "It is {day} and the {item} of {name} is not in {city}.",
    "A {item} in {colour} to {city} for {name}.",
]
TEST_MESSAGES = [
    "{name} would like the {colour} {item} to come to {city} on {day}.",
    "Send a {colour} {item} to {city}, please. {name}",
    "I am {name} and I need the {item} on {day}.",
    "Good morning, please bring a {colour} {item} to {name} on {day}.",
    "The {colour} {item} must be in {city} on {day}.",
    "{name} from {city} ordered a {item}.",
    "My name is {name}, is my {colour} {item} in {city}?",
    "A {colour} {item} for {name} in {city}, thank you.",
]


def row(template: str, rng: random.Random) -> dict[str, str]:
    """Return a message and its fields in a fixed order. A field that the message does not name is `none`."""
    values = {field: rng.choice(choices) for field, choices in VALUES.items()}
    named = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    fields = [f"{field}: {values[field] if field in named else 'none'}" for field in FIELDS]
    return {"prompt": template.format(**values), "completion": ", ".join(fields)}


def rows(templates: list[str], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return distinct rows in which every template occurs equally often."""
    rows_by_prompt: dict[str, dict[str, str]] = {}
    while len(rows_by_prompt) < count:
        new_row = row(templates[len(rows_by_prompt) % len(templates)], rng)
        rows_by_prompt.setdefault(new_row["prompt"], new_row)
    result = list(rows_by_prompt.values())
    rng.shuffle(result)
    return result


def main() -> None:
    rng = random.Random(SEED)
    for name, templates, count in (("train", TRAIN_MESSAGES, TRAIN_ROWS), ("test", TEST_MESSAGES, TEST_ROWS)):
        lines = [json.dumps(data_row) for data_row in rows(templates, count, rng)]
        (HERE / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
