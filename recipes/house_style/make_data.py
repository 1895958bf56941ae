"""Write the recipe's data: plain notes of an agent, and the reply to the customer in the house's style.

The style: greet by name, give the news in a whole sentence, name the next step, sign. Train and test share the kinds of
news and the vocabulary, and never the wording of a note.

    python recipes/house_style/make_data.py            # rewrites data/train.jsonl and data/test.jsonl in place
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
TRAIN_ROWS, TEST_ROWS = 1600, 150

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

STYLE = "Hello {name}, {news} {step} Your shop team"
NEWS = {
    "late": ("thank you for waiting. The {item} is late and comes on {day}.", "We are sorry."),
    "sent": ("good news. The {item} is on its way to {city}.", "You get it on {day}."),
    "refund": ("thank you for the {item}. You get your money back on {day}.", "Please look at your bank account."),
    "broken": ("we are sorry about the {item}. We send you a new one on {day}.", "You can keep the broken one."),
    "ready": ("good news. The {item} is ready in our shop in {city}.", "Please come before {day}."),
}
TRAIN_NOTES = {
    "late": [
        "{item} late, {name}, comes {day}",
        "{name}: the {item} is late until {day}",
        "late {item} for {name} {day}",
    ],
    "sent": [
        "{item} sent to {name} in {city}, there on {day}",
        "{name} {city}: {item} sent, arrives {day}",
        "sent the {item} to {city} for {name} {day}",
    ],
    "refund": [
        "refund for {name}, {item}, {day}",
        "{name} gets a refund for the {item} on {day}",
        "{item} came back, refund to {name} {day}",
    ],
    "broken": [
        "{item} of {name} broken, new one {day}",
        "broken {item}, {name}, send a new one {day}",
        "{name}: {item} is broken, replace on {day}",
    ],
    "ready": [
        "{item} ready for {name} in {city} until {day}",
        "{name} can get the {item} in {city} before {day}, it is ready",
        "ready in {city}: {item}, {name}, {day}",
    ],
}
TEST_NOTES = {
    "late": ["{name}, {item}, late, {day}", "the {item} for {name} comes late on {day}"],
    "sent": ["{name}: sent {item} to {city}, {day}", "{item} for {name} was sent to {city}, comes {day}"],
    "refund": ["{name} {item} refund {day}", "refund the {item} to {name} on {day}"],
    "broken": ["new {item} for {name} on {day}, the old one is broken", "{name} {item} broken {day}"],
    "ready": ["{name} {item} ready {city} {day}", "the {item} of {name} is ready in {city}, until {day}"],
}


def row(kind: str, note: str, rng: random.Random) -> dict[str, str]:
    values = {field: rng.choice(choices) for field, choices in VALUES.items()}
    news, step = NEWS[kind]
    reply = STYLE.format(name="{name}", news=news, step=step).format(**values)
    return {"prompt": note.format(**values), "completion": reply}


def rows(notes: dict[str, list[str]], count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return distinct rows in which every wording occurs equally often."""
    wordings = [(kind, note) for kind, some in notes.items() for note in some]
    rows_by_prompt: dict[str, dict[str, str]] = {}
    while len(rows_by_prompt) < count:
        new_row = row(*wordings[len(rows_by_prompt) % len(wordings)], rng)
        rows_by_prompt.setdefault(new_row["prompt"], new_row)
    result = list(rows_by_prompt.values())
    rng.shuffle(result)
    return result


def main() -> None:
    rng = random.Random(SEED)
    for name, notes, count in (("train", TRAIN_NOTES, TRAIN_ROWS), ("test", TEST_NOTES, TEST_ROWS)):
        lines = [json.dumps(data_row) for data_row in rows(notes, count, rng)]
        (HERE / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
