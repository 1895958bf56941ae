"""Count each user once while a split lasts, because a user stays on one side of it.

Failures of one user's requests depend on each other: a user whose prompts no version can answer brings many failures to one side
of a split. Where each user counts once, with the first answer, the users of both sides are exchangeable, which the gate's test of
a canary assumes. Requests without a ``user`` are drawn one by one, and each counts.

Failures of one API key count once, too, on whichever side the first of them is: a client chooses its ``user`` freely.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

MOST_USERS = 200_000
"""Users of a model that are remembered; further ones are not counted."""


@dataclass(frozen=True)
class Draw:
    """How the alias of a request was chosen that names only a model: for this ``user``, and whether a split was in force."""

    user: str | None
    is_split: bool


class FirstAnswers:
    """Remembers the users that were counted since the split of their model began."""

    def __init__(self) -> None:
        self._users: dict[str, set[bytes]] = {}
        self._failing_keys: dict[str, set[str]] = {}

    def is_counted(self, model: str, draw: Draw | None, failing_key: str | None = None) -> bool:
        """Return whether an answer counts, and remember its user. A request without a split ends the count of its model.

        Args:
            model: The registered model.
            draw: How the alias was chosen; None for a request that names an alias or a version, which never counts.
            failing_key: The API key of a failed answer; None for any other answer, and where the failures of a key are not limited.
        """
        if draw is None:
            return False
        if not draw.is_split:
            self._users.pop(model, None)
            self._failing_keys.pop(model, None)
            return False
        return self._is_new_user(model, draw.user) and self._is_new_failing_key(model, failing_key)

    def _is_new_failing_key(self, model: str, key: str | None) -> bool:
        if key is None:
            return True
        keys = self._failing_keys.setdefault(model, set())
        is_new = key not in keys
        keys.add(key)
        return is_new

    def _is_new_user(self, model: str, name: str | None) -> bool:
        if name is None:
            return True
        users = self._users.setdefault(model, set())
        user = hashlib.blake2b(name.encode(), digest_size=8).digest()
        if user in users or len(users) >= MOST_USERS:
            return False
        users.add(user)
        return True
