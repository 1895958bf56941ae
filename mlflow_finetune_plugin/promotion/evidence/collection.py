"""Collect the evidence that a policy asks for from MLflow. Missing answers are measured once per version and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare
from mlflow_finetune_plugin.evaluation.metric_modules import MetricModule, is_reward
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.gate.criteria import gain_confidence
from mlflow_finetune_plugin.gate.evidence import Evidence, Gain, Latency, Regression, Votes
from mlflow_finetune_plugin.gate.policy import HIGHEST_SCORES, GainPolicy, GatePolicy, VotesPolicy
from mlflow_finetune_plugin.promotion.error_rates.gain_tests import GainTests
from mlflow_finetune_plugin.promotion.error_rates.vote_pairs import VotePairs
from mlflow_finetune_plugin.promotion.evidence.answers import Note, Sources, answers_on, are_unseen, gain_of, metric_of
from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut, proof_answers
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.rewards import is_harmless, scoring
from mlflow_finetune_plugin.store.names import BASE
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults
from mlflow_finetune_plugin.store.served_tags import logged_latencies

_SHOWN = 3
_LONGEST = 60


@dataclass(frozen=True)
class Collected:
    """The evidence. ``notes`` say how it came about, one line each."""

    evidence: Evidence
    notes: tuple[str, ...]


def collect(
    policy: GatePolicy,
    candidate: ProvenVersion,
    champion: ProvenVersion | None,
    sources: Sources,
    say: Note,
    looks: int = 1,
) -> Collected:
    """Collect what the policy asks for; nothing else is measured. ``looks``: the versions that the candidate was chosen from.

    Raises:
        GateError: A part of the evidence is broken.
        ReloadError: A version cannot be loaded.
        TrackingError: MLflow does not answer.
    """
    notes: list[str] = []
    gain = _gain(policy.gain, candidate, champion, sources, say, notes, looks) if policy.gain is not None else None
    champion_rows = _champion_rows(policy.gain, candidate, champion, sources, say, notes) if policy.gain else None
    evidence = Evidence(
        has_champion=champion is not None,
        gain=gain,
        champion_rows=champion_rows,
        forgetting=candidate.forgetting if policy.forgetting is not None else None,
        votes=_votes(policy.votes, candidate, champion, notes) if policy.votes is not None else None,
        latency=_latency(candidate, champion, sources, notes) if policy.latency is not None else None,
        regressions=tuple(_regressions(policy, candidate, sources, say, notes)),
    )
    return Collected(evidence, tuple(notes))


# the gain ------------------------------------------------------------------------------------------------------------


def _gain(
    policy: GainPolicy,
    candidate: ProvenVersion,
    champion: ProvenVersion | None,
    sources: Sources,
    say: Note,
    notes: list[str],
    looks: int,
) -> Gain | None:
    rows = candidate.held_out
    if rows is None:
        notes.append(f"{candidate.uri}: its run recorded no held-out rows, so there is nothing to compare on")
        return None
    over_champion = policy.over == "champion" and champion is not None
    other = champion if over_champion else None
    if candidate.trained_rows is None:
        notes.append(f"{candidate.uri}: what it was trained on is not known, so its held-out rows are not evidence")
        return None
    unseen = are_unseen(rows.rows, [candidate, *([other] if other else [])], notes)
    indices = [i for i, is_new in enumerate(unseen) if is_new]
    if not indices:
        notes.append("one of the two versions was trained on every held-out row")
        return None
    module = metric_of(policy.metric, candidate, rows)
    if policy.through == "serving" and sources.served is None:
        notes.append(
            "the policy asks for answers through serving; fix: --endpoint URL of a router that serves both versions"
        )
        return None
    answers = _answers(policy, module, candidate, rows, sources, say)
    compared_with = (
        _answers(policy, module, other, rows, sources, say) if other is not None else _base_answers(candidate, rows)
    )
    if compared_with is None:
        notes.append(f"{candidate.uri}: its run recorded no answers of the base")
        return None
    if module.reads_rewards and other is not None:
        answers, compared_with = _rewarded(
            module, candidate, (candidate, other), rows, (answers, compared_with), sources, say
        )
    tests = GainTests.from_tags(_tags(candidate.name))
    test = tests.test(candidate.number, BASE if other is None else other.number, policy, looks)
    confidence = gain_confidence(policy, test.number, test.discoveries)
    over: Literal["champion", "base"] = "base" if other is None else "champion"
    return gain_of(module, rows, indices, answers, compared_with, over, test, confidence)


def _champion_rows(
    policy: GainPolicy,
    candidate: ProvenVersion,
    champion: ProvenVersion | None,
    sources: Sources,
    say: Note,
    notes: list[str],
) -> Gain | None:
    """Compare both versions on the champion's held-out rows; None where the candidate brought the same rows, or has seen them."""
    rows = None if champion is None else champion.held_out
    if champion is None or rows is None or candidate.held_out is None or policy.champion_rows_margin is None:
        return None
    if rows.digest == candidate.held_out.digest or (policy.through == "serving" and sources.served is None):
        return None  # without an endpoint the gain asks for one
    unseen = are_unseen(rows.rows, [candidate], notes) if candidate.trained_rows is not None else []
    indices = [i for i, is_new in enumerate(unseen) if is_new]
    brought = {hash_eval_row(row, 0) for row in candidate.held_out.rows}
    if all(hash_eval_row(rows.rows[i], 0) in brought for i in indices):
        return None
    owner = candidate
    metric = policy.metric or next(iter(candidate.held_out.metrics))
    if is_reward(metric) and candidate.held_out.metrics.get(metric) != rows.metrics.get(metric):
        owner = champion  # the candidate's rewards may need columns that these rows do not have
        notes.append(f"{champion.uri}'s rows have other rewards, so its first metric decides there")
    module = metric_of(policy.metric if owner is candidate else None, owner, rows)
    answers, champions = (_answers(policy, module, version, rows, sources, say) for version in (candidate, champion))
    if module.reads_rewards:
        answers, champions = _rewarded(module, owner, (candidate, champion), rows, (answers, champions), sources, say)
    return gain_of(module, rows, indices, answers, champions, "champion")


def _answers(
    policy: GainPolicy, module: MetricModule, version: ProvenVersion, rows: HeldOut, sources: Sources, say: Note
) -> AnswerSet:
    if policy.through == "model" or sources.served is None:
        return answers_on(version, rows, sources, say)
    if module.reads_likelihoods or module.reads_pairs:
        raise GateError(f"{module.name} needs likelihoods, which serving does not report; fix: gain.through: model")
    say(f"measuring the answers of {version.uri} to {len(rows.rows):,} held-out rows through serving")
    return sources.served(version).answer(rows.rows, rows.max_new_tokens)


def _rewarded(
    module: MetricModule,
    owner: ProvenVersion,
    versions: tuple[ProvenVersion, ProvenVersion],
    rows: HeldOut,
    sides: tuple[AnswerSet, AnswerSet],
    sources: Sources,
    say: Note,
) -> tuple[AnswerSet, AnswerSet]:
    """Return the answers of both versions with rewards: those of their proofs, or both scored now by the rewards of the owner of the rows.

    Both are scored if one has to be, because a judge, or a reward model behind an alias, may have changed.

    Raises:
        GateError: The rewards would run code of the owner's run, or ask a server that it names, and that is not trusted.
    """
    recorded = [
        module.name in side.rewards
        and version.held_out is not None
        and version.held_out.metrics.get(module.name) == rows.metrics.get(module.name)
        for version, side in zip(versions, sides, strict=True)
    ]
    if all(recorded):
        return sides
    if not sources.trusts_code and not all(map(is_harmless, owner.rewards)):
        raise GateError(
            f"{owner.uri}: the answers of both versions have to be scored by the rewards of its run, which run code or ask a server "
            "that the run names; fix: --trust-code, if you trust the one who trained it, or gain.metric: a metric of references, "
            "such as exact_match"
        )
    say(f"scoring the answers of both versions with the rewards of {owner.uri}")
    with scoring(owner.rewards) as score:
        assert score is not None
        first, second = (replace(side, rewards=score(rows.rows, side.answers)) for side in sides)
    return first, second


def _base_answers(candidate: ProvenVersion, rows: HeldOut) -> AnswerSet | None:
    table = candidate.proof_table
    return None if table is None else proof_answers(table, "base", rows.rows, f"{candidate.uri}'s proof")


# the rest ------------------------------------------------------------------------------------------------------------


def _regressions(
    policy: GatePolicy, candidate: ProvenVersion, sources: Sources, say: Note, notes: list[str]
) -> Iterator[Regression]:
    for regression in policy.regressions:
        rows = candidate.regression_rows(regression.data)
        answers = answers_on(candidate, rows, sources, say)
        module = metric_of(regression.metric, candidate, rows)
        if not module.higher_is_better:
            raise GateError(
                f"{regression.metric} on {regression.data}: lower is better, so at_least has no meaning; "
                "fix: another metric"
            )
        result, scores = compare(module, rows.rows, answers, answers, seed=0)
        best = HIGHEST_SCORES.get(regression.metric)
        if scores and best is not None:
            notes += missed_rows(regression.data, rows.rows, answers, scores[f"adapter_{module.name}"], best)
        yield Regression(regression.data, regression.metric, result.adapter)


def _votes(
    policy: VotesPolicy, candidate: ProvenVersion, champion: ProvenVersion | None, notes: list[str]
) -> Votes | None:
    """Return the votes between candidate and champion, or base while there is no champion."""
    from mlflow_finetune_plugin.votes.mlflow.reading import gate_votes, read_votes

    reading = read_votes(candidate.name)
    other = BASE if champion is None else champion.number
    refused = [f"{count:,} {why}" for why, count in reading.not_counted_between(candidate.number, other).items()]
    if refused:
        notes.append(f"votes that do not count: {', '.join(refused)}")
    votes = gate_votes(reading, candidate.number, other)
    if not votes:
        return None
    pair = VotePairs.from_tags(_tags(candidate.name)).pair(candidate.number, other, policy)
    over: Literal["champion", "base"] = "base" if champion is None else "champion"
    return Votes(votes, pair.number, over, reading.read_at, pair.discoveries)


def _tags(name: str) -> dict[str, str]:
    from mlflow import MlflowClient

    with registry_faults(name):
        return read_model(MlflowClient(), name)[1]


def _latency(
    candidate: ProvenVersion, champion: ProvenVersion | None, sources: Sources, notes: list[str]
) -> Latency | None:
    if sources.latency is not None:
        notes.append("latency: measured by a probe through the endpoint, one request at a time")
        return sources.latency
    fix = "serve it, or use promote --endpoint URL, which measures it"
    beside = (champion.tags, champion.uri) if champion is not None else None
    counts, other = logged_latencies((candidate.tags, candidate.uri), beside, notes, fix)
    return None if counts is None else Latency(counts, other)


def missed_rows(
    name: str, rows: Sequence[EvalRow], answers: AnswerSet, scores: Sequence[float], best: float
) -> list[str]:
    """Return how many rows scored below ``best``, and the first of them in full, one line each."""
    missed = [i for i, score in enumerate(scores) if score < best]
    if not missed:
        return []
    head = f"{name}: {len(missed):,} of {len(rows):,} rows missed{', the first ones' if len(missed) > _SHOWN else ''}:"
    return [head, *(_missed_row(rows[i], answers.answers[i]) for i in missed[:_SHOWN])]


def _missed_row(row: EvalRow, answer: str) -> str:
    question = str(row.messages[-1]["content"]) if row.messages else "the text"
    return (
        f"{Path(row.source).name} line {row.line}: {_short(question)} was answered {_short(answer)}, "
        f"not {_short(row.reference)}"
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}...")
