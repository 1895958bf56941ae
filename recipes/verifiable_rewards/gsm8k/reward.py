"""Rewards for word problems in GSM8K's format: the right number, and the form '#### number' at the end."""

import re

NUMBER = r"-?\$?[\d,]*\.?\d+"
LAST_LINE = re.compile(rf"####\s*({NUMBER})\s*$")


def number(text: str) -> float | None:
    """Return the number after #### at the end of a text; None if there is none."""
    match = LAST_LINE.search(text)
    return float(match[1].replace(",", "").replace("$", "")) if match else None


def form(completion: str) -> float:
    """Return 1 if the answer ends with '#### number', else 0."""
    return float(number(completion) is not None)


def correct(completion: str, answer: str) -> float:
    """Return 1 if the number at the end is that of the row's ``answer``, else 0."""
    expected = number(answer)
    if expected is None:
        raise ValueError(f"this row's answer does not end with '#### number': {answer[-60:]!r}")
    return float(number(completion) == expected)
