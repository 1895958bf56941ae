"""Canaries in processes of their own, which can be killed before any call by which they change something."""

from __future__ import annotations

import multiprocessing
import signal
from dataclasses import replace
from typing import Any

from alias_moves import Killed, evidence, faults_in, moves_of, processes, register_versions
from mlflow import MlflowClient
from routers_told import ToldRouter, telling

from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.promotion.canary.run import CanaryPlan
from mlflow_finetune_plugin.promotion.canary_trial import carry_out_canary
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import CANARY, CANARY_TAG

SPLIT_TAG = "finetune.split"
BEFORE = "champion=90, challenger=10"
_READS = ("get_", "search_", "download_")


class KilledAtWrite(Killed):
    """Before its change number ``at`` (from 1); reads, of which a canary makes as many as it waits, do not count."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(_READS) or name == "tracking_uri":
            return getattr(self._client, name)
        return super().__getattr__(name)


def prepare(client: MlflowClient, name: str) -> None:
    """Version 1 is champion by a recorded move, 2 the candidate; the split names the challenger, which is 2 as well."""
    from mlflow_finetune_plugin.promotion.moves.move import promote_version

    register_versions(client, name, 2)
    promote_version(client, name, "1", evidence=evidence(None))
    client.set_registered_model_alias(name, "challenger", "2")
    client.set_registered_model_tag(name, SPLIT_TAG, BEFORE)


def try_canary(client: Any, name: str, fails: float) -> None:
    """5 %, then 50 %, then champion; with answers that fail as often it is put back in the first step."""
    router = ToldRouter(client.tracking_uri, name, "1", "2", fails={"2": fails})
    policy = CanaryPolicy((5, 50), step_s=20.0 if fails else 0.2, least_answers=1, patience=1000)
    plan = CanaryPlan(name, "2", "1", policy, evidence("1"))
    with telling(router):
        carry_out_canary(client, plan, lambda text: None, lambda course: replace(plan.evidence, outcome=course.outcome))


def _life(uri: str, at: int, name: str, fails: float) -> None:
    try_canary(KilledAtWrite(MlflowClient(uri), at), name, fails)


def kill_canary(uri: str, at: int, name: str, *, fails: float) -> bool:
    """Whether it was killed; False when it made fewer changes and ended well."""
    process: multiprocessing.Process = processes().Process(target=_life, args=(uri, at, name, fails))
    process.start()
    process.join(120)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return bool(process.exitcode)


def faults_left_by_kill(client: MlflowClient, name: str) -> list[str]:
    """What users of a router would feel, before anybody has mended anything: nothing."""
    model = client.get_registered_model(name)
    split, aliases = model.tags.get(SPLIT_TAG, ""), model.aliases
    faults = []
    if CANARY in split and CANARY not in aliases:
        faults.append(f"{split}, and there is no such alias")
    if str(aliases.get("champion")) not in ("1", "2"):
        faults.append(f"champion is {aliases.get('champion')}")
    return faults


def faults_after_settling(client: MlflowClient, name: str) -> list[str]:
    """Settles, and says what is not as it was before, or not moved completely."""
    settle(client, name)
    _take_lease_away(client, name)
    model = client.get_registered_model(name)
    faults = faults_in(client, name, moves_of(client, name))
    if CANARY in model.aliases:
        faults.append("the alias canary is left")
    if model.tags.get(SPLIT_TAG) != BEFORE:
        faults.append(f"the split is {model.tags.get(SPLIT_TAG)}")
    if CANARY_TAG in model.tags:
        faults.append("a canary's tag is left")
    running = [
        one for one in history(client, name) if one.run_id and client.get_run(one.run_id).info.status == "RUNNING"
    ]
    if running:
        faults.append("a run is left running")
    return faults


def _take_lease_away(client: MlflowClient, name: str) -> None:
    """One whose holder died with nothing begun stays until somebody needs it."""
    from mlflow_finetune_plugin.promotion.moves.lease import Lease

    with Lease(client, name):
        pass
