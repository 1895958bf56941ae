"""Write the data of this recipe: messages with a question about one value in them, and the value as reference.

Nobody wrote answers to imitate: the model samples answers, and reward.py says whether one is right. Train and test never share a
phrasing of the message. They share the questions and the vocabulary.

    python recipes/verifiable_rewards/make_data.py    # rewrites data/train.jsonl and data/test.jsonl in place
"""

import argparse
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261124
TRAIN_ROWS = 400
TEST_ROWS = 120

NAMES = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Felix",
    "Greta",
    "Hugo",
    "Ida",
    "Jonas",
    "Lily",
    "Max",
    "Nina",
    "Oscar",
    "Paula",
    "Victor",
]
THINGS = ["jacket", "lamp", "chair", "phone", "kettle", "camera", "watch", "tent", "mirror", "printer"]
COLOURS = ["red", "blue", "green", "black", "white", "grey", "yellow", "brown"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
CITIES = ["London", "Paris", "Berlin", "Madrid", "Rome", "Oslo", "Dublin", "Vienna"]

TRAIN_MESSAGES = [
    "{name} from {city} sent the {colour} {thing} back on {day}.",
    "On {day} the shop in {city} sold a {colour} {thing} to {name}.",
    "A {colour} {thing} waits for {name} in {city} until {day}.",
    "The shop in {city} has a {colour} {thing} for {name} since {day}.",
    "{name} took the {colour} {thing} to {city} on {day}.",
    "Until {day} the {colour} {thing} is with {name} in {city}.",
]
TEST_MESSAGES = [
    "The {colour} {thing} of {name} did not come to {city} on {day}.",
    "{name} lost a {colour} {thing} in {city}, it was {day}.",
    "In {city} it rained on {day}, so {name} left the {colour} {thing} at home.",
]
QUESTIONS = {
    field: [f"Tell me the {field}.", f"The {field}, please."] for field in ("name", "thing", "colour", "day", "city")
}


def row(rng: random.Random, messages: list[str]) -> dict[str, str]:
    """Return one prompt with its reference."""
    values = {
        "name": rng.choice(NAMES),
        "thing": rng.choice(THINGS),
        "colour": rng.choice(COLOURS),
        "day": rng.choice(DAYS),
        "city": rng.choice(CITIES),
    }
    field = rng.choice(list(QUESTIONS))
    message = rng.choice(messages).format(**values)
    return {"prompt": f"{message} {rng.choice(QUESTIONS[field])}", "reference": values[field]}


def rows(seed: int, number: int, messages: list[str]) -> list[dict[str, str]]:
    """Return different prompts."""
    rng, found = random.Random(seed), {}
    while len(found) < number:
        made = row(rng, messages)
        found[made["prompt"]] = made
    return list(found.values())


def write(path: Path, content: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in content), encoding="utf-8")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    write(HERE / "data" / "train.jsonl", rows(SEED, TRAIN_ROWS, TRAIN_MESSAGES))
    write(HERE / "data" / "test.jsonl", rows(SEED + 1, TEST_ROWS, TEST_MESSAGES))


if __name__ == "__main__":
    main()
