"""A promotion from its request to its move, for the command and for ``-e promote``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, MoveError
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion.answers import Sources, Speaks, known_sides
from mlflow_finetune_plugin.promotion.canary_trial import CanaryTrial
from mlflow_finetune_plugin.promotion.carry_out import CarriedOut, carry_out
from mlflow_finetune_plugin.promotion.config import PromotionConfig, canary_policy, load_policy
from mlflow_finetune_plugin.promotion.decision import Decision, Standing, decide, stand
from mlflow_finetune_plugin.promotion.endpoint import Endpoint, ServedVersion, probe_latency
from mlflow_finetune_plugin.promotion.moves.canary_state import read_state
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion
from mlflow_finetune_plugin.promotion.report import decision_json, decision_lines, decision_page
from mlflow_finetune_plugin.store.names import CHAMPION, PROMOTION_RUN_TAG, VERDICT_TAG
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

Say = Callable[[str], None]


@dataclass(frozen=True)
class PromoteCommand:
    """``version``: None takes the challenger; ``policy``: folder of a recipe whose policy is to hold, None takes the one that
    the candidate was trained under; ``base_model``: where the base is now, when it has moved; ``canary``: how the candidate
    is tried before the move, None moves at once.
    """

    name: str
    version: str | None = None
    alias: str = CHAMPION
    policy: Path | None = None
    accept_new_policy: bool = False
    base_model: str | None = None
    endpoint: str | None = None
    dry_run: bool = False
    canary: CanaryPolicy | None = None


def run(config: PromotionConfig, client: MlflowClient, folder: Path, report: Report) -> dict[str, Any]:
    """``-e promote``: the same in a run, which holds the report too. Returns the run's last word."""
    command = PromoteCommand(
        name=config.model,
        version=config.version,
        alias=config.to,
        policy=Path(config.policy) if config.policy is not None else None,
        accept_new_policy=config.accept_new_policy,
        base_model=config.base_model,
        endpoint=config.endpoint,
        canary=canary_policy(config.canary, config.step, config.least_answers),
    )
    report.params({key: value for key, value in config.model_dump().items() if value is not None})
    decision, done = promote(client, command, lambda text: report.stage("gate", text))
    assert done is not None
    for name, text in (("verdict.json", decision_json(decision)), ("report.html", decision_page(decision))):
        report.text(folder / name, text, "gate")
    report.tags({VERDICT_TAG: decision.verdict.outcome, PROMOTION_RUN_TAG: done.run_id})
    for line in decision_lines(decision):
        report.stage("gate", line.strip())
    moved = done.move.text if done.move is not None else f"{decision.alias} stays"
    if done.move is not None and done.move.unrecorded is not None:
        moved += f"; its record could not be written: {done.move.unrecorded}"
    return {"model_uri": decision.candidate.uri, "summary": f"{decision.verdict.outcome}: {moved}"}


def promote(client: MlflowClient, command: PromoteCommand, say: Say) -> tuple[Decision, CarriedOut | None]:
    """Judges, and moves the alias when the verdict is to promote. ``say`` is told what takes time.

    Raises MoveError, GateError, LeaseError, ConfigError, ReloadError, TrackingError; then nothing was moved.
    """
    if command.dry_run:
        _tell_canary(client, command.name, say)
    settled = None if command.dry_run else settle(client, command.name)
    if settled is not None:
        say(settled.text)
    with registry_faults(command.name):
        standing = stand(
            client,
            command.name,
            command.version,
            command.alias,
            given=_policy(command),
            accept_new_policy=command.accept_new_policy,
        )
        trial = _trial(command, standing, say)
        sources = _sources(client, command, standing, say)
        decision = decide(standing, sources, say)
    if command.dry_run:
        return decision, None
    done = carry_out(client, decision, sources, trial=trial)
    return done.decision, done


def _tell_canary(client: MlflowClient, name: str, say: Say) -> None:
    """A dry run ends no canary, and does not pass it over."""
    with registry_faults(name):
        _, tags = read_model(client, name)
    state = read_state(tags)
    if state is None:
        return
    if state.is_alive(tags):
        say(f"{state.text} is under way: promote would be refused until it ends")
    else:
        say(
            f"{state.text} was cut off, and its share of the requests stands: promote, rollback or history puts it back"
        )


def _trial(command: PromoteCommand, standing: Standing, say: Say) -> CanaryTrial | None:
    """Told before anything is measured: a canary beside nobody, or for an alias that the split does not serve."""
    if command.canary is None:
        return None
    if standing.alias != CHAMPION:
        raise MoveError(f"{command.name}: a canary is for {CHAMPION}, not {standing.alias}; fix: leave --canary out")
    if standing.champion is None:
        raise MoveError(f"{command.name}: has no {CHAMPION} that could answer the rest; fix: leave --canary out")
    return CanaryTrial(command.canary, say)


def _policy(command: PromoteCommand) -> GatePolicy | None:
    if command.policy is None:
        return None
    policy = load_policy(command.policy)
    if policy is None:
        raise ConfigError([f"{command.policy}: its recipe has no register.gate; fix: write one, or leave --policy out"])
    return policy


def _sources(client: MlflowClient, command: PromoteCommand, standing: Standing, say: Say) -> Sources:
    @lru_cache(maxsize=1)  # one model in memory at a time
    def speaker(uri: str) -> Speaks:
        from mlflow_finetune_plugin.logged_models.answers import Answerer  # torch is not paid for before it is needed

        return Answerer(uri, command.base_model)

    versions = [standing.candidate, *([standing.champion] if standing.champion is not None else [])]
    experiment = client.get_experiment_by_name(f"{command.name}.promotions")
    known = (
        known_sides(client, experiment.experiment_id, [one.adapter_digest for one in versions]) if experiment else {}
    )
    sources = Sources(speaker=lambda version: speaker(version.uri), known=known)
    rows = standing.candidate.held_out
    if command.endpoint is None or rows is None:
        return sources
    endpoint = Endpoint(command.endpoint, os.environ.get(ROUTER_KEY))

    def served(version: ProvenVersion) -> ServedVersion:
        return ServedVersion(endpoint, version)

    sources.served = served
    if standing.policy.policy.latency is not None:
        champion = served(standing.champion) if standing.champion is not None else None
        sources.latency = probe_latency(served(standing.candidate), champion, endpoint, rows, say)
    return sources
