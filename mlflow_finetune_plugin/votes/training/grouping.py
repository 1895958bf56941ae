"""Group rows so that no voter and no prompt is on both sides of a split, where the votes allow it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.votes.journal.vote import prompt_digest
from mlflow_finetune_plugin.votes.training.rows import VotedRow

FEWEST_GROUPS = 6
"""Groups of voters and prompts below which rows are grouped by prompts alone: too few could be held out."""


@dataclass(frozen=True)
class Grouping:
    """The group of each row.

    Attributes:
        names: The group of each row, in order.
        keeps_voters: Whether the rows of a voter are in one group, too. Otherwise groups are prompts only.
        sentence: What the groups are, and why.
    """

    names: tuple[str, ...]
    keeps_voters: bool
    sentence: str

    @property
    def count(self) -> int:
        return len(set(self.names))


def group_rows(rows: Sequence[VotedRow]) -> Grouping:
    """Return groups that share no voter and no prompt, or prompts where these groups are too few or one is too large.

    Turns of one conversation begin with the same prompt and are one group.
    """
    prompts = [_first_prompt(row) for row in rows]
    connected = _connected([(prompt, *_voters(row)) for prompt, row in zip(prompts, rows, strict=True)])
    sizes = Counter(connected)
    largest = max(sizes.values(), default=0)
    if len(sizes) >= FEWEST_GROUPS and 2 * largest < len(rows):
        names = tuple(f"voters {number}" for number in connected)
        return Grouping(
            names, True, f"{len(sizes):,} groups of voters and prompts: none of either is on both sides of a split"
        )
    return Grouping(
        tuple(prompts),
        False,
        f"{len(set(prompts)):,} groups, one for each first prompt of a conversation: no prompt is on both sides of a split, and voters may be on both, "
        f"because voters and prompts form {len(sizes):,} separate group(s), the largest with {largest:,} of {len(rows):,} rows "
        f"(at least {FEWEST_GROUPS} groups, and less than half of the rows in each, would keep voters apart)",
    )


def _first_prompt(row: VotedRow) -> str:
    """Return a digest of the conversation's beginning, up to the first message of the user."""
    users = [number for number, message in enumerate(row.prompt) if message["role"] == "user"]
    return "prompt " + prompt_digest(row.prompt[: users[0] + 1] if users else row.prompt)[:16]


def _voters(row: VotedRow) -> set[str]:
    return {f"voter {vote.voter}" for vote in row.votes}


def _connected(rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the number of each row's connected component, where rows are connected by what they share."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        parents.setdefault(name, name)
        while parents[name] != name:
            parents[name] = parents[parents[name]]
            name = parents[name]
        return name

    for first, *others in rows:
        for other in others:
            parents[root(other)] = root(first)
    numbers: dict[str, int] = {}
    return [numbers.setdefault(root(row[0]), len(numbers) + 1) for row in rows]
