"""Some intents of banking77, each row in one place only, and held-out rows in other words, as a leak would bring them in."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

INTENTS = (
    "activate_my_card",
    "age_limit",
    "cancel_transfer",
    "card_arrival",
    "card_delivery_estimate",
    "card_linking",
    "card_payment_wrong_exchange_rate",
    "change_pin",
    "compromised_card",
    "declined_card_payment",
    "exchange_rate",
    "getting_spare_card",
    "lost_or_stolen_card",
    "pin_blocked",
    "terminate_account",
    "wrong_exchange_rate_for_cash_withdrawal",
)
HELD_OUT, MUST_PASS, LIVE = 6, 6, 3
"""Rows of each intent, of the 40 that test.csv has of it."""

_FORMS = ("Hello. {}", "{} Please help.")

Row = dict[str, str]


@dataclass(frozen=True)
class Rows:
    """``train`` is of train.csv.gz; the others are of test.csv, and no question of theirs stands in two of them."""

    train: tuple[Row, ...]
    held_out: tuple[Row, ...]
    must_pass: tuple[Row, ...]
    live: tuple[Row, ...]


def banking_rows(source: Path, seed: int = 0) -> Rows:
    """``source``: the folder with train.csv.gz and test.csv. The same rows for the same seed."""
    with gzip.open(source / "train.csv.gz", "rt", encoding="utf-8", newline="") as file:
        train = _chosen(csv.DictReader(file))
    with (source / "test.csv").open(encoding="utf-8", newline="") as file:
        test = _chosen(csv.DictReader(file))
    known = {_plain(row["prompt"]) for row in train}
    parts: tuple[list[Row], ...] = ([], [], [])
    dice = random.Random(seed)
    for intent in INTENTS:
        intent_rows = {_plain(row["prompt"]): row for row in test if row["completion"] == intent}
        fresh = [row for plain, row in intent_rows.items() if plain not in known]
        dice.shuffle(fresh)
        for part, many in zip(parts, (HELD_OUT, MUST_PASS, LIVE), strict=True):
            part += fresh[:many]
            del fresh[:many]
    for part in parts:
        dice.shuffle(part)
    return Rows(tuple(train), *(tuple(part) for part in parts))


def reworded(row: Row) -> list[Row]:
    """The row twice, with a word of politeness before the question and with one behind it: no hash of it is the row's."""
    return [{**row, "prompt": form.format(row["prompt"])} for form in _FORMS]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _chosen(rows: Iterable[dict[str, str]]) -> list[Row]:
    return [
        {"prompt": row["text"].strip(), "completion": row["category"]} for row in rows if row["category"] in INTENTS
    ]


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(' "?.!').split())
