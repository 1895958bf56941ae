"""Promote and rollback from the app do what the commands do, and an app that goes leaves a model whole. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from alias_moves import promote
from conftest import Workplace, is_alive, wait_for
from mlflow import MlflowClient
from proven_versions import register_proven, rows

from gradio_app.versions.promotion import Promotions
from gradio_app.versions.rollback import carry_out_rollback, plan_promotion, plan_rollback
from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.promotion.moves.canary_moves import begin_canary
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease
from mlflow_finetune_plugin.store.names import INTENT_TAG, SPLIT_TAG
from mlflow_finetune_plugin.store.registered_model import read_model

POLICY = GatePolicy.model_validate({"gain": {"metric": "exact_match"}})


def version(client: MlflowClient, right: int) -> str:
    return register_proven(client, "bot", rows(200), right=right, base_right=20, policy=POLICY)


def aliases(client: MlflowClient) -> tuple[str | None, str | None]:
    found = read_model(client, "bot")[0]
    return found.get("champion"), found.get("previous")


@pytest.mark.process
def test_the_gate_moves_the_alias_and_its_verdict_is_told(registry):
    first, worse = version(registry, 100), version(registry, 60)
    promotions = Promotions()
    end = promotions.begin("bot", first, "ann").wait(120)
    assert (end.outcome, [(found.name, found.outcome) for found in end.findings]) == ("promoted", [("gain", "pass")])
    assert end.findings[0].reason.startswith("exact_match over the base 0.4 [")
    assert aliases(registry) == (first, None)
    assert history(registry, "bot")[0].who.startswith("ann via ")
    end = promotions.begin("bot", worse, "ann").wait(120)
    assert end.outcome == "rejected"
    assert "exact_match over the champion -0.2 [" in end.reason
    assert aliases(registry) == (first, None)


@pytest.mark.process
def test_what_cannot_be_judged_is_told_as_the_command_says_it(registry):
    registry.create_registered_model("bot")
    registry.create_model_version("bot", "runs:/nothing/model")
    end = Promotions().begin("bot", "1", "").wait(120)
    assert end.outcome == "fault"
    assert "was not registered by mlflow-finetune" in end.reason
    assert "; fix: " in end.reason
    assert not end.reason.startswith("mlflow-finetune:")


@pytest.mark.process
def test_a_name_that_looks_like_an_option_is_a_name(registry):
    registry.create_registered_model("--dry-run")
    end = Promotions().begin("--dry-run", "1", "").wait(120)
    assert "--dry-run" in end.reason
    assert "no version 1" in end.reason


@pytest.mark.process
def test_one_promotion_of_a_model_at_a_time(registry):
    first = version(registry, 100)
    promotions = Promotions()
    begun = promotions.begin("bot", first, "ann")
    with pytest.raises(MoveError, match=f"judges version {first}, started by ann.*fix: wait"):
        promotions.begin("bot", first, "ben")
    assert begun.wait(120).outcome == "promoted"
    assert promotions.last("bot") is begun
    assert "already" in promotions.begin("bot", first, "ben").wait(120).reason


@pytest.mark.fault
@pytest.mark.process
def test_a_gate_that_dies_or_takes_too_long_is_a_fault_and_moves_nothing(registry):
    first = version(registry, 100)
    promotions = Promotions()
    begun = promotions.begin("bot", first, "ann")
    os.killpg(begun._process.pid, signal.SIGKILL)
    assert "ended by signal 9" in begun.wait(30).reason
    end = Promotions(limit_s=0.2).begin("bot", first, "ann").wait(30)
    assert (end.outcome, "was stopped" in end.reason) == ("fault", True)
    assert aliases(registry) == (None, None)
    assert promotions.begin("bot", first, "ann").wait(120).outcome == "promoted", "and the next one goes through"


def begin_and_end(desk: Workplace, number: str, end: str) -> int:
    """The process id of a gate whose app has ended."""
    code = f"import os, sys; from gradio_app.versions.promotion import Promotions; begun = Promotions().begin('bot', {number!r}, ''); "
    code += f"print(begun._process.pid, flush=True); {end}"
    app = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, env=desk.environment
    )
    return int(app.stdout)


@pytest.mark.process
def test_an_app_that_ends_takes_its_gate_along(registry, desk):
    gate = begin_and_end(desk, version(registry, 100), "sys.exit(0)")
    wait_for(lambda: not is_alive(gate), 10, "end of the gate")
    assert aliases(registry) == (None, None)


@pytest.mark.fault
@pytest.mark.process
def test_an_app_that_is_killed_leaves_the_model_whole(registry, desk):
    first = version(registry, 100)
    gate = begin_and_end(desk, first, "os.kill(os.getpid(), 9)")
    wait_for(lambda: not is_alive(gate), 120, "end of the gate")
    moved = [(record.to_version, record.is_moved) for record in history(registry, "bot")]
    assert (aliases(registry), moved) in [((None, None), []), ((first, None), [(first, True)])]
    assert INTENT_TAG not in read_model(registry, "bot")[1]


def test_a_rollback_ends_a_canary_first_and_only_that(registry):
    first, second = (version(registry, right) for right in (100, 160))
    promote(registry, "bot", first, None)
    with Lease(registry, "bot") as lease:
        begin_canary(
            registry,
            lease,
            second,
            CanaryPolicy(steps=(5.0,)),
            MoveEvidence("promote", "d" * 64, "gain", champion=first),
        )
    plan = plan_rollback(registry, "bot")
    assert plan.text.startswith(f"The canary of version {second} ends")
    assert "ended by a rollback of ann via" in carry_out_rollback(registry, plan, reason="slow", person="ann")
    found, tags = read_model(registry, "bot")
    assert (found["champion"], "canary" in found, SPLIT_TAG in tags) == (first, False, False)
    with pytest.raises(MoveError):
        carry_out_rollback(registry, plan, reason="", person="ann")


def test_a_plan_says_what_will_happen(registry):
    first, second = version(registry, 100), version(registry, 160)
    plan = plan_promotion(registry, "bot", first)
    assert "against its base, because there is no champion yet" in plan.text
    registry.set_registered_model_alias("bot", "champion", first)
    text = plan_promotion(registry, "bot", second).text
    assert f"judges version {second} against champion version {first}" in text
    assert f"previous becomes version {first}" in text
    for number, said in ((first, "is champion already"), ("99", "no version '99'"), ("1 OR 1", "no version '1 OR 1'")):
        with pytest.raises(MoveError, match=said):
            plan_promotion(registry, "bot", number)
    with pytest.raises(MoveError, match="no version has the alias 'previous'"):
        plan_rollback(registry, "bot")


def test_a_rollback_does_what_was_confirmed_or_nothing(registry):
    first, second, third = (version(registry, right) for right in (100, 130, 160))
    promote(registry, "bot", first, None)
    promote(registry, "bot", second, first)
    plan = plan_rollback(registry, "bot")
    assert f"champion goes from version {second} back to version {first}" in plan.text
    promote(registry, "bot", third, second)
    with pytest.raises(MoveError, match="moved since the plan was made"):
        carry_out_rollback(registry, plan, reason="", person="ann")
    assert aliases(registry) == (third, second)
    told = carry_out_rollback(registry, plan_rollback(registry, "bot"), reason="rude answers", person="ann\nbob")
    assert told == f"bot: champion {third} -> {second}, previous is {third}"
    newest = history(registry, "bot")[0]
    assert (newest.kind, newest.reason, newest.who.partition(" via ")[0]) == ("rollback", "rude answers", "ann bob")
