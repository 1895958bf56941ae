"""Check a champion: collect the evidence and judge it. Nothing is written or moved here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.gate.watch import WatchVerdict, judge_watch
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured, WatchEvidence
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.promotion.evidence.answers import Note, Sources
from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut
from mlflow_finetune_plugin.promotion.moves.audit import now
from mlflow_finetune_plugin.watch.evidence import collect_evidence
from mlflow_finetune_plugin.watch.state import WatchState, last_state
from mlflow_finetune_plugin.watch.target import Watched

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXIT_CODES = {"keep": 0, "re-tune": 3, "roll back": 4}

Rows = Callable[[], HeldOut | NotMeasured | None]
"""Reads the user's new rows; returns None where the user named none."""


@dataclass(frozen=True)
class WatchCheck:
    """A check of a champion: policy, evidence and verdict. ``when`` is ISO 8601 in UTC."""

    watched: Watched
    policy: WatchPolicy
    verdict: WatchVerdict
    evidence: WatchEvidence = field(repr=False)
    state: WatchState = field(repr=False)
    notes: tuple[str, ...]
    when: str


def check(
    client: MlflowClient, watched: Watched, policy: WatchPolicy, rows: Rows, sources: Sources, say: Note
) -> WatchCheck:
    """Check a champion.

    Args:
        client: The tracking server.
        watched: The champion and the version before it.
        policy: The criteria.
        rows: Reads the user's new rows.
        sources: Where answers come from.
        say: Receives a line before each step that takes time.

    Raises:
        TrackingError: MLflow does not answer. The errors of ``rows`` are passed on.
    """
    notes: list[str] = []
    experiment = client.get_experiment_by_name(f"{watched.name}.promotions")
    state = last_state(client, experiment.experiment_id, notes) if experiment is not None else WatchState()
    collected = collect_evidence(watched, policy, state, rows(), sources, say)
    verdict = judge_watch(policy, collected.evidence)
    return WatchCheck(watched, policy, verdict, collected.evidence, collected.state, (*notes, *collected.notes), now())
