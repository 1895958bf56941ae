"""The gains that the gate has tested: they share one error rate, because all of them may use the same held-out rows.

The same candidate, champion and ``gain`` section of the policy are one test, which gives the same answer as often as it is
asked. Another candidate, champion or section is a new test: the best of many would be a lucky one sooner or later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_finetune_plugin.gate.policy import GainPolicy
from mlflow_finetune_plugin.promotion.error_rates.numbered_test import NumberedTest, next_test, tests_from_tags
from mlflow_finetune_plugin.store.names import GAIN_TEST_TAG

_DIGITS = 8


@dataclass(frozen=True)
class GainTests:
    """The tests of a registered model, by ``gain_test_key``."""

    tests: Mapping[str, NumberedTest]

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> GainTests:
        """Read them from the tags of the registered model. Raises MoveError for a tag that was changed."""
        return cls(tests_from_tags(tags, GAIN_TEST_TAG))

    def test(self, candidate: str, other: str, policy: GainPolicy, looks: int = 1) -> NumberedTest:
        """Return the test, or what it would be if it were made now.

        Args:
            candidate: The version to judge.
            other: The version that it is compared with, or ``base``.
            policy: What the gain must show.
            looks: How many versions the candidate was chosen from by their scores on the held-out rows.
        """
        return self.tests.get(gain_test_key(candidate, other, policy)) or next_test(self.tests.values(), looks)


def gain_test_key(candidate: str, other: str, policy: GainPolicy) -> str:
    content = json.dumps(policy.model_dump(mode="json", exclude={"alpha", "champion_rows_margin"}), sort_keys=True)
    return f"{candidate}-{other}-{hashlib.sha256(content.encode()).hexdigest()[:_DIGITS]}"
