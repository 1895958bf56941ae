"""A promotion from its request to the move of the alias, for the command, the Python API and ``-e promote``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, GateError, MoveError
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.evidence import Evidence, Latency
from mlflow_finetune_plugin.gate.latency import judge_latency
from mlflow_finetune_plugin.gate.policy import GatePolicy, LatencyPolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion.canary_trial import CanaryTrial
from mlflow_finetune_plugin.promotion.choice import Candidate, choose_candidate
from mlflow_finetune_plugin.promotion.config import PromotionConfig, canary_policy, load_policy
from mlflow_finetune_plugin.promotion.connection import connect
from mlflow_finetune_plugin.promotion.decision import PendingDecision, decide, prepare_decision
from mlflow_finetune_plugin.promotion.decision_run import carry_out
from mlflow_finetune_plugin.promotion.error_rates.recording import record_tests
from mlflow_finetune_plugin.promotion.evidence.answers import RowAnswerer, Sources, recorded_answers
from mlflow_finetune_plugin.promotion.evidence.endpoint import RouterEndpoint, ServedVersion, probe_latency
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.promotion.moves.canary_state import read_state
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.promotion.report import decision_json, decision_page
from mlflow_finetune_plugin.promotion.result import PromotionResult
from mlflow_finetune_plugin.store.names import CHAMPION, PROMOTION_RUN_TAG, VERDICT_TAG
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

Say = Callable[[str], None]


@dataclass(frozen=True)
class PromotionOptions:
    """How a promotion is judged and carried out.

    Args:
        version: The version to judge; None means the one that the model's name includes, else the challenger.
        alias: The alias to move.
        policy: Folder of a project whose ``register.gate`` applies; None means the policy that the training recorded.
        accept_new_policy: Allow a policy that differs from the recorded one.
        base_model: Folder of the base model, when it has moved.
        trust_code: Run Python code in a version that this package does not know.
        endpoint: URL of a router (``http://.../v1``) that serves both versions. Its latency counts, and it answers
            where the policy asks for serving.
        dry_run: Judge only; move nothing, and write no report. The tests are counted, because their outcome was seen.
        canary: How the candidate is tried on a growing share of the requests before the move; None moves at once.
    """

    version: str | None = None
    alias: str = CHAMPION
    policy: Path | None = None
    accept_new_policy: bool = False
    base_model: str | None = None
    trust_code: bool = False
    endpoint: str | None = None
    dry_run: bool = False
    canary: CanaryPolicy | None = None


def promote(
    model: str,
    options: PromotionOptions | None = None,
    *,
    client: MlflowClient | None = None,
    say: Say = lambda text: None,
) -> PromotionResult:
    """Judge a version by its policy, and move the alias to it when the verdict is to promote.

    A version that has the alias already is success, and nothing is judged.

    Args:
        model: ``my-bot``, ``my-bot/3``, ``my-bot@challenger`` or a ``models:/`` URI.
        options: None means the defaults.
        client: None means a client of the current tracking server.
        say: Receives a line before each step that takes time.

    Raises:
        ConfigError, GateError, LeaseError, MoveError, ReloadError, TrackingError: Nothing was moved.
    """
    options, client = options or PromotionOptions(), connect(client)
    with registry_faults(model):
        candidate = choose_candidate(client, model, options.version, options.alias)
    name = candidate.name
    if options.dry_run:
        _report_canary(client, name, say)
    elif (settled := settle(client, name)) is not None:
        say(settled.text)
        with registry_faults(name):  # what an earlier call had begun may have moved the alias
            candidate = choose_candidate(client, model, options.version, options.alias)
    for note in (candidate.choice, candidate.better):
        if note:
            say(note)
    if candidate.has_alias:
        return PromotionResult(name, options.alias, candidate.number, "unchanged", notes=candidate.notes)
    return _judge_and_move(client, candidate, options, say)


def promote_first(client: MlflowClient, name: str, version: str) -> PromotionResult | None:
    """Judge a version that a run has just proven by its recorded policy, and make it the first champion if it passes.

    Only what the run measured is evidence: no model is loaded.

    Args:
        client: The tracking server and registry.
        name: The registered model.
        version: The version.

    Returns:
        The decision; None where there is a champion already, and nothing was judged.

    Raises:
        GateError, LeaseError, MoveError, TrackingError: Nothing was moved.
    """
    settle(client, name)
    with registry_faults(name):
        pending = prepare_decision(client, name, version, CHAMPION)
        if pending.champion is not None:
            return None
        sources = Sources(answerer=_refuse_to_measure)
        decision = decide(pending, sources, lambda text: None)
    recorded = carry_out(client, decision, sources)
    return PromotionResult.of(recorded.decision, run_id=recorded.run_id, move=recorded.move)


def _refuse_to_measure(version: ProvenVersion) -> RowAnswerer:
    raise GateError(
        f"the policy asks for answers that the run did not measure; fix: mlflow-finetune promote {version.name} "
        f"--version {version.number}"
    )


def run(config: PromotionConfig, client: MlflowClient, folder: Path, report: Report) -> dict[str, Any]:
    """Carry out ``-e promote``: the same inside a run, which holds the report too. Returns the run's result."""
    options = PromotionOptions(
        version=config.version,
        alias=config.to,
        policy=Path(config.policy) if config.policy is not None else None,
        accept_new_policy=config.accept_new_policy,
        base_model=config.base_model,
        trust_code=config.trust_code,
        endpoint=config.endpoint,
        canary=canary_policy(config.canary, config.step, config.least_answers, config.failures_at_most),
    )
    report.params({key: value for key, value in config.model_dump().items() if value is not None})
    result = promote(config.model, options, client=client, say=lambda text: report.stage("gate", text))
    decision, move = result.decision, result.move
    if decision is None:
        return {"model_uri": result.model_uri, "summary": result.text()}
    for name, text in (("verdict.json", decision_json(decision)), ("report.html", decision_page(decision))):
        report.text(folder / name, text, "gate")
    report.tags({VERDICT_TAG: result.outcome, PROMOTION_RUN_TAG: str(result.run_id)})
    for line in result.text().splitlines():
        report.stage("gate", line.strip())
    moved = move.text if move is not None else f"{decision.alias} was not moved"
    if move is not None and move.unrecorded is not None:
        moved += f"; its record could not be written: {move.unrecorded}"
    return {"model_uri": result.model_uri, "summary": f"{result.outcome}: {moved}"}


def _judge_and_move(client: MlflowClient, candidate: Candidate, options: PromotionOptions, say: Say) -> PromotionResult:
    with registry_faults(candidate.name):
        pending = prepare_decision(
            client,
            candidate.name,
            candidate.number,
            options.alias,
            policy=_policy(options),
            accept_new_policy=options.accept_new_policy,
            looks=candidate.looks,
        )
        trial = _trial(options, pending, say)
        sources = _sources(client, options, pending, say)
        decision = decide(pending, sources, say)
        decision = replace(decision, notes=(*candidate.notes, *decision.notes))
    if options.dry_run:
        record_tests(client, decision)
        return PromotionResult.of(decision, is_dry_run=True)
    recorded = carry_out(client, decision, sources, trial=trial)
    return PromotionResult.of(recorded.decision, run_id=recorded.run_id, move=recorded.move)


def _report_canary(client: MlflowClient, name: str, say: Say) -> None:
    """A dry run does not end a canary, but reports one."""
    with registry_faults(name):
        _, tags = read_model(client, name)
    state = read_state(tags)
    if state is None:
        return
    if state.is_alive(tags):
        say(f"{state.text} is under way: promote would be refused until it ends")
    else:
        say(
            f"{state.text} was cut off and still gets its share of the requests: "
            "promote, rollback or history restores the split"
        )


def _trial(options: PromotionOptions, pending: PendingDecision, say: Say) -> CanaryTrial | None:
    """Check, before anything is measured, that a canary is possible: it needs a champion."""
    if options.canary is None:
        return None
    if pending.alias != CHAMPION:
        raise MoveError(f"{pending.name}: a canary is for {CHAMPION}, not {pending.alias}; fix: leave --canary out")
    if pending.champion is None:
        raise MoveError(f"{pending.name}: has no {CHAMPION} that could answer the rest; fix: leave --canary out")
    return CanaryTrial(options.canary, say)


def _policy(options: PromotionOptions) -> GatePolicy | None:
    if options.policy is None:
        return None
    policy = load_policy(options.policy)
    if policy is None:
        raise ConfigError([f"{options.policy}: its recipe has no register.gate; fix: write one, or leave --policy out"])
    return policy


def _sources(client: MlflowClient, options: PromotionOptions, pending: PendingDecision, say: Say) -> Sources:
    @lru_cache(maxsize=1)  # one model in memory at a time
    def answerer(uri: str) -> RowAnswerer:
        from mlflow_finetune_plugin.logged_models.answers import Answerer  # imports torch, which most calls do not need

        return Answerer(uri, options.base_model, trust_code=options.trust_code)

    versions = [pending.candidate, *([pending.champion] if pending.champion is not None else [])]
    experiment = client.get_experiment_by_name(f"{pending.name}.promotions")
    adapters = [version.adapter_digest for version in versions]
    known = recorded_answers(client, experiment.experiment_id, adapters) if experiment else {}
    sources = Sources(answerer=lambda version: answerer(version.uri), known=known, trusts_code=options.trust_code)
    rows = pending.candidate.held_out
    if options.endpoint is None or rows is None:
        return sources
    endpoint = RouterEndpoint(options.endpoint, os.environ.get(ROUTER_KEY))

    def served(version: ProvenVersion) -> ServedVersion:
        return ServedVersion(endpoint, version)

    sources.served = served
    bounds = pending.policy.policy.latency
    if bounds is not None:
        champion = served(pending.champion) if pending.champion is not None else None
        is_decided = partial(_is_decided, bounds, champion is not None)
        sources.latency = probe_latency(served(pending.candidate), champion, endpoint, rows, say, is_decided)
    return sources


def _is_decided(bounds: LatencyPolicy, has_champion: bool, latency: Latency) -> bool:
    findings = judge_latency(bounds, Evidence(has_champion=has_champion, latency=latency))
    return all(finding.outcome != "hold" for finding in findings)
