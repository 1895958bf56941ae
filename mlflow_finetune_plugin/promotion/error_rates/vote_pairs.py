"""The pairs of versions that the gate has tested by votes: they share one error rate.

A pair gets its number when the gate first decides about it with as many voters as the policy needs, and keeps it: neither
votes that are deleted later nor pairs that only a few people voted on change the number of another pair.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_finetune_plugin.promotion.error_rates.numbered_test import NumberedTest, next_test, tests_from_tags
from mlflow_finetune_plugin.store.names import VOTE_PAIR_TAG


@dataclass(frozen=True)
class VotePairs:
    """The pairs of a registered model that were tested, by their two versions."""

    pairs: Mapping[frozenset[str], NumberedTest]

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> VotePairs:
        """Read them from the tags of the registered model. Raises MoveError for a tag that was changed."""
        tests = tests_from_tags(tags, VOTE_PAIR_TAG)
        return cls({frozenset(names.split("-")): test for names, test in tests.items()})

    def pair(self, candidate: str, champion: str) -> NumberedTest:
        """Return the pair's test, or what it would be if the pair were tested now."""
        return self.pairs.get(frozenset({candidate, champion})) or next_test(self.pairs.values())


def vote_pair_tag(candidate: str, champion: str) -> str:
    return VOTE_PAIR_TAG + "-".join(sorted((candidate, champion)))
