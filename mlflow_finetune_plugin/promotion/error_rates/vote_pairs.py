"""The pairs of versions that the gate has tested by votes: they share one error rate.

A pair gets its number when the gate first decides about it with as many voters as the policy needs, and keeps it: neither
votes that are deleted later nor pairs that only a few people voted on change the number of another pair. The same votes under
another ``votes`` section of the policy are a new test: of many sections, one would show a preference sooner or later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.promotion.error_rates.numbered_test import NumberedTest, next_test, tests_from_tags
from mlflow_finetune_plugin.store.names import VOTE_PAIR_TAG

_DIGITS = 8


@dataclass(frozen=True)
class VotePairs:
    """The pairs of a registered model that were tested, by ``vote_pair_key``."""

    pairs: Mapping[str, NumberedTest]

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> VotePairs:
        """Read them from the tags of the registered model. Raises MoveError for a tag that was changed."""
        return cls(tests_from_tags(tags, VOTE_PAIR_TAG))

    def pair(self, candidate: str, champion: str, policy: VotesPolicy) -> NumberedTest:
        """Return the pair's test by this ``policy``, or what it would be if the pair were tested now."""
        return self.pairs.get(vote_pair_key(candidate, champion, policy)) or next_test(self.pairs.values())


def vote_pair_key(candidate: str, champion: str, policy: VotesPolicy) -> str:
    """Return the two versions in an order that does not depend on which is the champion, and a digest of the test's settings."""
    content = json.dumps(policy.model_dump(mode="json", exclude={"alpha", "required"}), sort_keys=True)
    return "-".join((*sorted((candidate, champion)), hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]))
