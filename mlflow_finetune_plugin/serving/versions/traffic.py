"""Choose the alias that answers a request which names only a model, and the aliases that get a copy of it.

Two tags of the registered model hold the weights, so that a change is recorded where the aliases are:

    finetune.split    champion=90, challenger=10
    finetune.shadow   challenger            (or challenger=0.1 for a tenth of the requests)

If a request has a ``user``, the same user gets the same alias while the weights stay the same.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow_finetune_plugin.store.names import CHALLENGER, CHAMPION, SHADOW_TAG, SPLIT_TAG

_EXAMPLES = {SPLIT_TAG: f"{CHAMPION}=90, {CHALLENGER}=10", SHADOW_TAG: f"{CHALLENGER}=0.1"}


@dataclass(frozen=True)
class Traffic:
    """The traffic rules of a model.

    Attributes:
        split: Weights by alias; empty without a tag.
        shadow: Shares of the requests by alias, from 0 to 1.
        problems: One message per tag that is not valid.
    """

    split: Mapping[str, float] = field(default_factory=dict)
    shadow: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def choose(self, model: str, aliases: Mapping[str, str], user: str | None) -> str | None:
        """Return an alias that exists: by the split, else champion; None without either.

        A challenger is never chosen without a split, because it is not proven against the champion, or against its base by the gate.
        """
        weights = {alias: weight for alias, weight in self.split.items() if alias in aliases and weight > 0}
        if not weights:
            return CHAMPION if CHAMPION in aliases else None
        point = _point(model, user) * sum(weights.values())
        for alias, weight in weights.items():
            point -= weight
            if point < 0:
                return alias
        return next(reversed(weights))

    def shadows(self, aliases: Mapping[str, str]) -> list[str]:
        """Return the aliases that get a copy of this request, each drawn by its own share."""
        return [alias for alias, share in self.shadow.items() if alias in aliases and random.random() < share]


def read_traffic(tags: Mapping[str, str], aliases: Mapping[str, str]) -> Traffic:
    """Return the rules that a registered model's tags hold. A tag that is not valid counts as absent, with a problem."""
    problems: list[str] = []
    split = _weights(tags, SPLIT_TAG, aliases, problems)
    if split and not any(split.values()):
        problems.append(f"{SPLIT_TAG} = {tags[SPLIT_TAG]!r}: all weights are 0; fix: {_EXAMPLES[SPLIT_TAG]}")
        split = {}
    shadow = _weights(tags, SHADOW_TAG, aliases, problems)
    if any(share > 1 for share in shadow.values()):
        problems.append(
            f"{SHADOW_TAG} = {tags[SHADOW_TAG]!r}: shares are between 0 and 1; fix: {_EXAMPLES[SHADOW_TAG]}"
        )
        shadow = {}
    return Traffic(split, shadow, tuple(problems))


def _weights(tags: Mapping[str, str], tag: str, aliases: Mapping[str, str], problems: list[str]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in tags.get(tag, "").split(","))):
        alias, equals, weight = (text.strip() for text in part.partition("="))
        try:
            weights[alias] = _weight(weight) if equals else 1.0
        except ValueError:
            problems.append(f"{tag} = {tags[tag]!r}: {weight!r} is not a valid weight; fix: {_EXAMPLES[tag]}")
            return {}
        if alias not in aliases:
            has = ", ".join(sorted(aliases)) or "none"
            problems.append(f"{tag} = {tags[tag]!r}: no alias {alias!r}, the model has: {has}; fix: {_EXAMPLES[tag]}")
            return {}
    return weights


def _weight(text: str) -> float:
    weight = float(text)
    if not 0 <= weight < float("inf"):
        raise ValueError(text)
    return weight


def _point(model: str, user: str | None) -> float:
    """Return a number in [0, 1), random without a user and always the same for a user."""
    if user is None:
        return random.random()
    digest = hashlib.blake2b(f"{model}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
