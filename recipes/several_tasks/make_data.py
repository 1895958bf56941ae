"""Write the recipe's data: one inbox and three questions about each message. Each question is a task with its own files.

`team` asks which team answers, `urgent` asks for yes or no, `order_number` asks for the number or none. Train and test share
vocabulary and never the wording of a message.

    python recipes/several_tasks/make_data.py            # rewrites data/*.jsonl in place
"""

import json
import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
TRAIN_ROWS, TEST_ROWS = 600, 60

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
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

TRAIN_MESSAGES = {
    "billing": [
        "I was charged twice for the {item}.",
        "The invoice for my {item} is wrong.",
        "Please send me the receipt for the {item}.",
        "My card was charged on {day}.",
        "The bill for the {item} is too high.",
        "I paid for the {item} two times.",
    ],
    "delivery": [
        "My parcel with the {item} has not arrived.",
        "The courier did not come to {city} on {day}.",
        "When will the {item} be shipped to {city}?",
        "The driver left the {item} at the wrong address.",
        "The tracking says that my {item} is in {city}.",
        "The package is late since {day}.",
    ],
    "returns": [
        "I want to send the {item} back.",
        "The {item} is too small, can I exchange it?",
        "I need a return label for the {item}.",
        "The {item} is broken and I want a refund.",
        "How do I return the {item} in {city}?",
        "The {item} does not fit, please swap it.",
    ],
}
TEST_MESSAGES = {
    "billing": [
        "You charged my card for the {item} on {day}.",
        "Is the invoice of the {item} right? The bill is high.",
    ],
    "delivery": ["Has the courier with my {item} come to {city}?", "My package to {city} is late."],
    "returns": ["I would like to exchange the {item}.", "The broken {item} should go back, I want a return label."],
}
TRAIN_URGENT = [" It is urgent.", " I need it today.", " Please answer now.", " This cannot wait."]
TRAIN_CALM = [" There is time.", " Thanks.", " No need to hurry.", " Best wishes, Anna", ""]
TEST_URGENT = [" Please, it is urgent, answer today.", " I need an answer now."]
TEST_CALM = [" Thanks, there is no hurry.", " Many thanks."]
TRAIN_ORDERS = ["Order {order}. ", "My order is {order}. ", "About order {order}: "]
TEST_ORDERS = ["Order {order}: ", "It is about my order {order}. "]
QUESTIONS = {"team": "Which team?", "urgent": "Is it urgent?", "order_number": "What is the order number?"}


def message(side: tuple, rng: random.Random) -> tuple[str, dict[str, str]]:
    """Return a message and the right answer to each question."""
    messages, urgent, calm, orders = side
    team = rng.choice(list(messages))
    is_urgent, has_order = rng.random() < 0.5, rng.random() < 0.7
    order = str(rng.randint(1000, 9999))
    text = rng.choice(messages[team]).format(item=rng.choice(ITEMS), city=rng.choice(CITIES), day=rng.choice(DAYS))
    text += rng.choice(urgent if is_urgent else calm)
    text = (rng.choice(orders).format(order=order) if has_order else "") + text
    return text, {"team": team, "urgent": "yes" if is_urgent else "no", "order_number": order if has_order else "none"}


def rows(side: tuple, task: str, count: int, rng: random.Random) -> list[dict[str, str]]:
    """Return distinct rows of one task."""
    rows_by_text: dict[str, dict[str, str]] = {}
    while len(rows_by_text) < count:
        text, answers = message(side, rng)
        rows_by_text.setdefault(text, {"prompt": f"{text} {QUESTIONS[task]}", "completion": answers[task]})
    return list(rows_by_text.values())


def main() -> None:
    rng = random.Random(SEED)
    train = TRAIN_MESSAGES, TRAIN_URGENT, TRAIN_CALM, TRAIN_ORDERS
    test = TEST_MESSAGES, TEST_URGENT, TEST_CALM, TEST_ORDERS
    for name, side, count in (("train", train, TRAIN_ROWS), ("test", test, TEST_ROWS)):
        for task in QUESTIONS:
            lines = [json.dumps(data_row) for data_row in rows(side, task, count, rng)]
            (HERE / "data" / f"{task}.{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
