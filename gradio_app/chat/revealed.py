"""Remember which answers a user has seen with the model's name, so that no vote on them counts as blind."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.votes.journal.vote import prompt_digest

_MOST_ANSWERS = 10_000
_MOST_USERS = 2_000


class RevealedAnswers:
    """The answers that one user has seen with a name, as hashes: the newest 10,000."""

    def __init__(self) -> None:
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def add(self, messages_digest: str, text: str) -> None:
        """Add an answer. ``messages_digest`` is the digest of the messages that it answers."""
        key = _hash(messages_digest, text)
        self._hashes[key] = None
        self._hashes.move_to_end(key)
        if len(self._hashes) > _MOST_ANSWERS:
            self._hashes.popitem(last=False)

    def has(self, messages_digest: str, text: str) -> bool:
        return _hash(messages_digest, text) in self._hashes

    def add_shared(self, conversation: Mapping[str, Any]) -> None:
        """Add the answers of a shared conversation that are shown with a name."""
        for turn in conversation.get("turns", ()):
            for answer in turn["answers"]:
                if "model" in answer:
                    self.add(prompt_digest(turn["messages"]), answer["content"])


class RevealedByUser:
    """The revealed answers of each user, in all sessions of that user, until the playground ends."""

    def __init__(self) -> None:
        self._answers: OrderedDict[str | None, RevealedAnswers] = OrderedDict()

    def of(self, login: str | None) -> RevealedAnswers:
        """Return the answers of a user; None is the only user of a page without a login."""
        answers = self._answers.setdefault(login, RevealedAnswers())
        self._answers.move_to_end(login)
        if len(self._answers) > _MOST_USERS:
            self._answers.popitem(last=False)
        return answers


def _hash(messages_digest: str, text: str) -> bytes:
    return hashlib.sha256(f"{messages_digest} {text}".encode("utf-8", "surrogatepass")).digest()
