"""Which prompts of a set a voter has judged, and which come next: unseen ones, in an order of the voter's own."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.votes.journal.journal import Journal
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote, prompt_digest
from mlflow_finetune_plugin.votes.prompt_sets import PromptSet, PromptSetRow


@dataclass(frozen=True)
class Progress:
    """``upcoming``: what this voter has not judged, in the order in which to ask."""

    done: int
    total: int
    upcoming: tuple[PromptSetRow, ...]

    @property
    def next(self) -> PromptSetRow | None:
        """None: all are judged."""
        return self.upcoming[0] if self.upcoming else None

    @property
    def sentence(self) -> str:
        if self.next is None:
            return f"You have judged all {self.total:,} prompts of this set. Thank you!"
        return f"{self.done:,} of {self.total:,} prompts judged"


class JudgedPrompts:
    """Who has judged which prompts, by the journal on this disk; votes of other hosts are not in it.

    Reads what was cast since the last look, and everything again after somebody's votes were forgotten.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._inode: int | None = None
        self._sequence = 0
        self._judged: dict[str, dict[str, set[frozenset[str]]]] = {}  # who -> prompt -> pairs of versions

    def of(self, voter: str, session: str, versions: frozenset[str] | None = None) -> frozenset[str]:
        """Digests of the prompts on which this voter voted, between ``versions`` if they are given.

        Visitors without a login are one voter in the votes; here each is known by the session. A digest is of all
        messages, and of those after the system prompt, which the page may have added.
        """
        with self._lock:
            self._catch_up()
            judged = self._judged.get(_who(voter, session), {})
            return frozenset(digest for digest, pairs in judged.items() if versions is None or versions in pairs)

    def _catch_up(self) -> None:
        inode = (self._journal.folder / "votes.jsonl").stat().st_ino
        if inode != self._inode:  # begun, or rewritten without what was forgotten
            self._inode, self._sequence, self._judged = inode, 0, {}
        for entry in self._journal.entries(self._sequence):
            self._sequence = entry.sequence
            self._remember(entry.vote)

    def _remember(self, vote: CastVote) -> None:
        by_prompt = self._judged.setdefault(_who(vote.voter, vote.turn.session), {})
        versions = frozenset(side.receipt.version for side in vote.sides if side.receipt is not None)
        for digest in _digests(vote.turn.messages):
            by_prompt.setdefault(digest, set()).add(versions)


def progress(prompt_set: PromptSet, judged: Iterable[str], voter: str, session: str, *, seed: int = 0) -> Progress:
    """``judged`` as ``JudgedPrompts.of`` gives them.

    The order is shuffled by the seed, the set's name and the voter, so that several voters together cover the set long
    before each has judged all of it; it is the same after a restart, and judging one prompt does not move the others.
    """
    known = set(judged)
    ordered = list(prompt_set.prompts)
    random.Random(f"{seed} {prompt_set.name} {_who(voter, session)}").shuffle(ordered)
    upcoming = tuple(prompt for prompt in ordered if prompt.digest not in known)
    return Progress(len(ordered) - len(upcoming), len(ordered), upcoming)


def _who(voter: str, session: str) -> str:
    return f"{ANONYMOUS} {session}" if voter == ANONYMOUS else voter


def _digests(messages: tuple[Message, ...]) -> set[str]:
    whole = {prompt_digest(messages)}
    return whole | {prompt_digest(messages[1:])} if messages[0]["role"] == "system" and messages[1:] else whole
