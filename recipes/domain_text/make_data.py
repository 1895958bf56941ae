"""Write the recipe's data: service reports of machines, as plain text.

The domain has its own form and knowledge: each machine has typical faults, and each fault has a cause and a remedy. The
model can learn this from the reports only.

    python recipes/domain_text/make_data.py            # rewrites data/reports.txt in place
"""

import random
from pathlib import Path

HERE = Path(__file__).parent
SEED = 20261121
REPORTS = 700

MACHINES = {
    "printer": [
        ("prints slow", "the driver is old", "load the update"),
        ("shows a blank screen", "the cable is loose", "push the cable in"),
        ("is loud", "the paper is wet", "change the paper"),
    ],
    "kettle": [
        ("stays cold", "the switch is broken", "send a new switch"),
        ("is slow", "the inside is dirty", "clean the inside"),
        ("loses water", "the lid is open", "close the lid"),
    ],
    "phone": [
        ("does not start", "the battery is empty", "change the battery"),
        ("is warm", "the app does not stop", "close the app"),
        ("has no sound", "the volume is low", "set the volume high"),
    ],
    "camera": [
        ("is dark", "the glass is dirty", "clean the glass"),
        ("does not open", "the door is damaged", "replace the door"),
        ("shows an error", "the card is full", "send an empty card"),
    ],
}
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
NAMES = [
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
]


def report(rng: random.Random) -> str:
    machine = rng.choice(list(MACHINES))
    fault, cause, remedy = rng.choice(MACHINES[machine])
    lines = [
        f"Report of {rng.choice(DAYS)}, {rng.choice(CITIES)}. Machine: {machine} {rng.randint(100, 999)}.",
        f"Fault: the {machine} {fault}.",
        f"Cause: {cause}.",
        f"Remedy: {remedy}.",
        f"Signed {rng.choice(NAMES)}.",
    ]
    return " ".join(lines)


def main() -> None:
    rng = random.Random(SEED)
    reports = list(dict.fromkeys(report(rng) for _ in range(REPORTS)))
    (HERE / "data" / "reports.txt").write_text("\n\n".join(reports) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
