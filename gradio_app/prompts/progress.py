"""Which prompts of a set a voter has judged, and which come next, in an order that differs between voters."""

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
    """A voter's progress in a set. ``upcoming`` holds the prompts that the voter has not judged, in their order."""

    done: int
    total: int
    upcoming: tuple[PromptSetRow, ...]

    @property
    def next(self) -> PromptSetRow | None:
        """The next prompt, or None when all are judged."""
        return self.upcoming[0] if self.upcoming else None

    @property
    def sentence(self) -> str:
        if self.next is None:
            return f"You have judged all {self.total:,} prompts of this set. Thank you!"
        return f"{self.done:,} of {self.total:,} prompts judged"


class JudgedPrompts:
    """The prompts that each voter has judged, by the journal on this disk. Votes of other hosts are not in it.

    Each call reads the votes since the last call, and all votes again after some were deleted.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._inode: int | None = None
        self._sequence = 0
        self._judged: dict[str, dict[str, set[frozenset[str]]]] = {}  # By voter, then by prompt: pairs of versions.

    def of(self, voter: str, session: str, versions: frozenset[str] | None = None) -> frozenset[str]:
        """Return digests of the prompts that this voter judged, between ``versions`` if given.

        All visitors without a login are one voter in the ledger; here the session distinguishes them. A prompt has a
        digest of all its messages and one without the system prompt, because the page may have added that.
        """
        with self._lock:
            self._catch_up()
            judged = self._judged.get(_voter_key(voter, session), {})
            return frozenset(digest for digest, pairs in judged.items() if versions is None or versions in pairs)

    def _catch_up(self) -> None:
        inode = (self._journal.folder / "votes.jsonl").stat().st_ino
        if inode != self._inode:  # A new file, or one rewritten without deleted votes.
            self._inode, self._sequence, self._judged = inode, 0, {}
        for entry in self._journal.entries(self._sequence):
            self._sequence = entry.sequence
            self._remember(entry.vote)

    def _remember(self, vote: CastVote) -> None:
        by_prompt = self._judged.setdefault(_voter_key(vote.voter, vote.turn.session), {})
        versions = frozenset(side.receipt.version for side in vote.sides if side.receipt is not None)
        for digest in _digests(vote.turn.messages):
            by_prompt.setdefault(digest, set()).add(versions)


def progress(prompt_set: PromptSet, judged: Iterable[str], voter: str, session: str, *, seed: int = 0) -> Progress:
    """Return a voter's progress. ``judged`` comes from ``JudgedPrompts.of``.

    The seed, the set's name and the voter determine the order, so that several voters together cover the set long
    before each has judged all of it. The order is the same after a restart, and a vote does not change it.
    """
    judged = set(judged)
    ordered = list(prompt_set.prompts)
    random.Random(f"{seed} {prompt_set.name} {_voter_key(voter, session)}").shuffle(ordered)
    upcoming = tuple(prompt for prompt in ordered if prompt.digest not in judged)
    return Progress(len(ordered) - len(upcoming), len(ordered), upcoming)


def _voter_key(voter: str, session: str) -> str:
    return f"{ANONYMOUS} {session}" if voter == ANONYMOUS else voter


def _digests(messages: tuple[Message, ...]) -> set[str]:
    whole = {prompt_digest(messages)}
    return whole | {prompt_digest(messages[1:])} if messages[0]["role"] == "system" and messages[1:] else whole
