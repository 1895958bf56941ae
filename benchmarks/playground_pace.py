"""Can the slower side be told from how a blind turn is shown? Simulated turns, two readings of what the page gets.

    python benchmarks/playground_pace.py [--turns 400]

*Word ends*: how often an update ends where a side's word ends. *Rhythm*: how well a side's words explain the time between
updates. Each guesses the slower side of every turn; a coin gets half of them right.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "gradio_app" / "chat")]

SPEEDS = ((20, 200), (50, 55), (3, 30), (10, 100))


def main() -> None:
    from test_pacing import fit_of_times, share_of_word_ends, turn

    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=400)
    turns = parser.parse_args().turns
    print("| tokens a second | turns | right by word ends | right by rhythm |\n|---|---|---|---|")
    for slow, fast in SPEEDS:
        chance = random.Random(11)
        by_words = by_times = 0
        for number in range(turns):
            is_first_slow = number % 2 == 1
            texts, updates = turn(chance, (slow, fast) if is_first_slow else (fast, slow))
            shown = [[(at, lengths[side]) for at, lengths in updates] for side in (0, 1)]
            ends = [share_of_word_ends(text, [stop for _, stop in shown[side]]) for side, text in enumerate(texts)]
            fits = [fit_of_times(text, shown[side]) for side, text in enumerate(texts)]
            by_words += (ends[0] > ends[1]) == is_first_slow
            by_times += (fits[0] > fits[1]) == is_first_slow
        print(f"| {slow} and {fast} | {turns} | {by_words / turns:.1%} | {by_times / turns:.1%} |", flush=True)


if __name__ == "__main__":
    main()
