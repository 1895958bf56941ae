"""Count each user once while a split lasts, because a user stays on one side of it.

Failures of one user's requests depend on each other: a user whose prompts no version can answer brings many failures to one side
of a split. Where each user counts once, with the first answer, the users of both sides are exchangeable, which the gate's test of
a canary assumes. Requests without a ``user`` are drawn one by one, and each counts.
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

    def is_counted(self, model: str, draw: Draw | None) -> bool:
        """Return whether an answer counts, and remember its user. A request without a split ends the count of its model.

        Args:
            model: The registered model.
            draw: How the alias was chosen; None for a request that names an alias or a version, which never counts.
        """
        if draw is None:
            return False
        if not draw.is_split:
            self._users.pop(model, None)
            return False
        if draw.user is None:
            return True
        users = self._users.setdefault(model, set())
        user = hashlib.blake2b(draw.user.encode(), digest_size=8).digest()
        if user in users or len(users) >= MOST_USERS:
            return False
        users.add(user)
        return True
