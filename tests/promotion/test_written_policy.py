import json

import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.written_policy import WrittenPolicy

FIRST_RULES = """{"digest": "a93deee4249fe82fa10e616c179f0c9dbf644a0c486185eac6b86533e553f14e", "files": {}, "gate": {
 "forgetting": null, "gain": {"at_least": 0.0, "metric": "exact_match", "over": "champion", "through": "model"},
 "latency": null, "regressions": [],
 "votes": {"alpha": 0.05, "minimum": 12, "per_voter": 5, "required": false, "unit": "voter"}}}"""
"""Written by the code of 2026-11-22, before votes had planned looks."""

BEFORE_ALPHA = """{"digest": "b8e2b84e2b15c38172bbbd3442608d4a736f136ebe3387296dfad99fa12083c2", "files": {}, "gate": {"forgetting": null, "gain": null,
 "latency": {"over_champion": 1.2, "p95_ms": 800.0}, "regressions": [], "votes": null}}"""
"""Written before latency had an alpha, under the second rules."""


def test_a_policy_is_read_as_it_was_written():
    written = WrittenPolicy(GatePolicy.model_validate({"gain": {"metric": "exact_match"}}), {"a.jsonl": ("1", "2")})
    again = WrittenPolicy.from_json(written.to_json(), "it")
    assert again == written
    assert again.digest == written.digest


def test_a_policy_of_earlier_rules_is_read_and_keeps_its_digest():
    old = WrittenPolicy.from_json(FIRST_RULES, "it")
    assert old.digest == json.loads(FIRST_RULES)["digest"]
    assert old.policy == GatePolicy.model_validate({"gain": {"metric": "exact_match"}, "votes": {"minimum": 12}})
    assert WrittenPolicy(old.policy).digest != old.digest


def test_a_policy_that_bounds_latency_without_an_alpha_is_read_with_its_digest():
    old = WrittenPolicy.from_json(BEFORE_ALPHA, "it")
    assert old.digest == json.loads(BEFORE_ALPHA)["digest"]
    assert old.policy.latency.alpha == 0.05
    assert WrittenPolicy.from_json(old.to_json().replace('"alpha": 0.05,', ""), "it").digest == old.digest


@pytest.mark.bad_input
@pytest.mark.parametrize("change", [("0.05", "0.2"), ('"minimum": 12', '"minimum": 1'), ("a93d", "b93d")])
def test_a_changed_policy_is_refused(change):
    with pytest.raises(GateError, match="fix: find out who changed it"):
        WrittenPolicy.from_json(FIRST_RULES.replace(*change), "it")
