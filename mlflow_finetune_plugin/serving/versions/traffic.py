"""Who answers when only a model is named: a weighted split among its aliases, and shadow traffic beside it.

Both are tags of the registered model, so that moving them is recorded where aliases are:

    finetune.split    champion=90, challenger=10
    finetune.shadow   challenger            (or challenger=0.1 for a tenth of the requests)

With ``user`` in a request, the same user gets the same alias as long as the weights stay.
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
    """``split``: weights by alias, empty where nothing was said. ``problems``: tags that could not be understood."""

    split: Mapping[str, float] = field(default_factory=dict)
    shadow: Mapping[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def choose(self, model: str, aliases: Mapping[str, str], user: str | None) -> str | None:
        """An alias that exists: by the split, else champion, else challenger; None where there is none of them."""
        weights = {alias: weight for alias, weight in self.split.items() if alias in aliases and weight > 0}
        if not weights:
            return next((alias for alias in (CHAMPION, CHALLENGER) if alias in aliases), None)
        point = _point(model, user) * sum(weights.values())
        for alias, weight in weights.items():
            point -= weight
            if point < 0:
                return alias
        return next(reversed(weights))

    def shadows(self, aliases: Mapping[str, str]) -> list[str]:
        """The aliases that shall also get this request, each by its own share of the dice."""
        return [alias for alias, share in self.shadow.items() if alias in aliases and random.random() < share]


def read_traffic(tags: Mapping[str, str], aliases: Mapping[str, str]) -> Traffic:
    """What the tags of a registered model say; a tag that is wrong counts as absent and is told in ``problems``."""
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
            problems.append(f"{tag} = {tags[tag]!r}: {weight!r} is no weight; fix: {_EXAMPLES[tag]}")
            return {}
        if alias not in aliases:
            has = ", ".join(sorted(aliases)) or "none"
            problems.append(f"{tag} = {tags[tag]!r}: no alias {alias!r}, it has: {has}; fix: {_EXAMPLES[tag]}")
            return {}
    return weights


def _weight(text: str) -> float:
    weight = float(text)
    if not 0 <= weight < float("inf"):
        raise ValueError(text)
    return weight


def _point(model: str, user: str | None) -> float:
    """Somewhere in [0, 1): for a user always the same."""
    if user is None:
        return random.random()
    digest = hashlib.blake2b(f"{model}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
