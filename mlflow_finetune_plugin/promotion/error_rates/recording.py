"""Record the tests of a decision, so that later ones get other parts of the error."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.promotion.error_rates.gain_tests import gain_test_key
from mlflow_finetune_plugin.promotion.error_rates.numbered_test import NumberedTest
from mlflow_finetune_plugin.promotion.error_rates.vote_pairs import VotePairs, vote_pair_key
from mlflow_finetune_plugin.store.names import BASE, GAIN_TEST_TAG, VOTE_PAIR_TAG
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.promotion.decision import Decision

logger = logging.getLogger(__name__)


def record_tests(client: MlflowClient, decision: Decision) -> None:
    """Write the numbers of a decision's tests to the registered model.

    A dry run records them too: its outcome was seen. A user who may not change the model may still judge, because nothing is
    moved then. Raises TrackingError or MoveError where the verdict is to promote and the registry refuses.
    """
    from mlflow.exceptions import MlflowException

    try:
        for tag, test in (*_gain(decision), *_votes(client, decision)):
            client.set_registered_model_tag(decision.name, tag, test.to_json())
    except MlflowException as error:
        if decision.verdict.outcome == "promote":
            with registry_faults(decision.name):
                raise
        logger.warning("this test has no number in the registry yet: %s", in_short(error))


def _gain(decision: Decision) -> list[tuple[str, NumberedTest]]:
    policy, gain, finding = decision.policy.policy.gain, decision.evidence.gain, _finding(decision, "gain")
    if policy is None or gain is None or gain.number is None or finding is None or finding.interval is None:
        return []
    other = BASE if gain.over == "base" or decision.champion is None else decision.champion.number
    tag = GAIN_TEST_TAG + gain_test_key(decision.candidate.number, other, policy)
    return [(tag, NumberedTest(gain.number, gain.discoveries, finding.outcome == "pass"))]


def _votes(client: MlflowClient, decision: Decision) -> list[tuple[str, NumberedTest]]:
    """Return the pair's test where its votes were enough to decide."""
    policy, votes, finding = decision.policy.policy.votes, decision.evidence.votes, _finding(decision, "votes")
    if policy is None or votes is None or finding is None or int(finding.details.get("counted") or 0) < policy.minimum:
        return []
    champion = BASE if decision.champion is None else decision.champion.number
    pairs = VotePairs.from_tags(read_model(client, decision.name)[1])
    is_better = pairs.pair(decision.candidate.number, champion, policy).is_better or finding.outcome == "pass"
    test = NumberedTest(votes.number or 1, votes.discoveries, is_better)
    return [(VOTE_PAIR_TAG + vote_pair_key(decision.candidate.number, champion, policy), test)]


def _finding(decision: Decision, name: str) -> Finding | None:
    return next((finding for finding in decision.verdict.findings if finding.name == name), None)
