"""Answers of versions to rows, and their comparison.

The answers come from the proof of the version's own run, from an earlier decision or check, or are measured now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.errors import GateError, in_short
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED, MetricModule, is_reward
from mlflow_finetune_plugin.evaluation.results import EvalRow, Interval
from mlflow_finetune_plugin.gate.evidence import Gain, Latency
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows
from mlflow_finetune_plugin.promotion.error_rates.numbered_test import NumberedTest
from mlflow_finetune_plugin.promotion.evidence.held_out import (
    HeldOut,
    answer_set_content,
    answer_set_from,
    metric_key,
    proof_answers,
)
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.store.names import (
    MOVE_CANDIDATE_DIGEST_TAG,
    MOVE_CHAMPION_DIGEST_TAG,
    SIDES_TAG,
    WATCH_CHAMPION_DIGEST_TAG,
    WATCH_PREVIOUS_DIGEST_TAG,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

ANSWERS_FILE = "sides.json"
"""Artifact of a decision or a check: the measured answers by adapter and rows, so that later ones reuse them."""

WATCHED_TAGS = (WATCH_CHAMPION_DIGEST_TAG, WATCH_PREVIOUS_DIGEST_TAG)
"""Tags of a check's run with the digests of the adapters that it compared."""
ADAPTER_TAGS = (MOVE_CANDIDATE_DIGEST_TAG, MOVE_CHAMPION_DIGEST_TAG, *WATCHED_TAGS)
"""Tags of runs that may hold ANSWERS_FILE: the digests of the adapters that answered."""

Note = Callable[[str], None]


class RowAnswerer(Protocol):
    """Answers rows as a version does: the loaded model, or an endpoint that serves it."""

    def answer(self, rows: Sequence[EvalRow], max_new_tokens: int) -> AnswerSet: ...


@dataclass
class Sources:
    """Where evidence comes from.

    Args:
        answerer: Returns what answers rows as a version; called only when answers have to be measured.
        served: The same through serving; None without an endpoint.
        latency: Latency that a probe measured; it is used instead of the routers' own figures.
        known: Answers of earlier decisions and checks, by the digests of adapter and rows.
        measured: Answers that were measured now, by the same keys.
        trusts_code: Whether rewards of a version may run its code, and send answers and API keys to the addresses that it names.
    """

    answerer: Callable[[ProvenVersion], RowAnswerer]
    served: Callable[[ProvenVersion], RowAnswerer] | None = None
    latency: Latency | None = None
    known: dict[tuple[str, str], AnswerSet] = field(default_factory=dict)
    measured: dict[tuple[str, str], AnswerSet] = field(default_factory=dict)
    trusts_code: bool = False


def answers_on(version: ProvenVersion, rows: HeldOut, sources: Sources, say: Note) -> AnswerSet:
    """Return the version's answers to the rows: those of its proof, of an earlier decision, or measured now."""
    key = (version.adapter_digest, rows.digest)
    table, held_out = version.proof_table, version.held_out
    if version.is_run_s_own and table is not None and held_out is not None and held_out.digest == rows.digest:
        return proof_answers(table, "adapter", rows.rows, f"{version.uri}'s proof")
    for known in (sources.known, sources.measured):
        if key in known and len(known[key].answers) == len(known[key].nats) == len(rows.rows):
            return known[key]
    say(f"measuring the answers of {version.uri} to {len(rows.rows):,} rows")
    sources.measured[key] = sources.answerer(version).answer(rows.rows, rows.max_new_tokens)
    return sources.measured[key]


def are_unseen(
    rows: Sequence[EvalRow], versions: Sequence[ProvenVersion], notes: list[str], what: str = "held-out rows"
) -> list[bool]:
    """Return for each row whether none of the versions was trained on it.

    An answer that a version memorised is not evidence of what it can do.

    Args:
        rows: The rows that the versions answer.
        versions: The versions.
        notes: Receives what is left out or not known.
        what: What the notes call the rows.
    """
    unseen = [True] * len(rows)
    for version in versions:
        trained = version.trained_rows
        if trained is None:
            notes.append(
                f"{version.uri}: whether it was trained on these rows is not known, because its run did not "
                "record its rows"
            )
            continue
        hashes, seed = trained
        in_training = [hash_eval_row(row, seed) in hashes for row in rows]
        if any(in_training):
            notes.append(
                f"{version.uri} was trained on {sum(in_training):,} of {len(rows):,} {what}: they are left out"
            )
        unseen = [is_new and not is_trained for is_new, is_trained in zip(unseen, in_training, strict=True)]
    return unseen


def metric_of(name: str | None, candidate: ProvenVersion, rows: HeldOut) -> MetricModule:
    """Return the metric that a policy names; None means the first metric of the proof.

    A metric of the user's own is loaded from the file in the candidate's proof.
    """
    metrics = candidate.held_out.metrics if candidate.held_out is not None else rows.metrics
    file_name = metric_key(name or next(iter(metrics)))
    if is_reward(file_name):
        _check_same_rewards(file_name, candidate, rows)
    (module,) = load_metrics([file_name if file_name in PACKAGED else candidate.metric_file(file_name)])
    return module


def _check_same_rewards(metric: str, candidate: ProvenVersion, rows: HeldOut) -> None:
    """Raise GateError where the rewards of the candidate's proof are not those that the rows were recorded with."""
    own = candidate.held_out.metrics.get(metric) if candidate.held_out is not None else None
    if own is None or own != rows.metrics.get(metric):
        raise GateError(
            f"{candidate.uri}: its answers were not scored with the same rewards as those of the rows, so {metric} cannot be "
            "compared; fix: gain.metric: a metric of references, such as exact_match"
        )


def gain_of(
    module: MetricModule,
    rows: HeldOut,
    indices: list[int],
    candidate: AnswerSet,
    other: AnswerSet,
    over: Literal["champion", "base"],
    test: NumberedTest | None = None,
    confidence: float = 0.95,
) -> Gain:
    """Return the candidate's gain in a metric.

    Args:
        module: The metric.
        rows: The rows that both were asked.
        indices: The rows that count.
        candidate: The candidate's answers to all rows.
        other: The answers that they are compared with.
        over: Whose answers ``other`` are.
        test: The part of the error that this gain may spend; None means all of it.
        confidence: Of the interval where the metric has no score per row.
    """
    compared_rows = [rows.rows[i] for i in indices]
    all_clusters = rows.clusters
    clusters = [all_clusters[i] for i in indices] if all_clusters is not None else None
    result, scores = compare(
        module,
        compared_rows,
        other.at(indices),
        candidate.at(indices),
        seed=0,
        clusters=clusters,
        confidence=confidence,
    )
    number, discoveries = (None, 0) if test is None else (test.number, test.discoveries)
    if not scores:
        measured = _with_a_width(result.gain)
        return Gain(module.name, over, measured, module.higher_is_better, number, discoveries)
    sides = zip(scores[f"adapter_{module.name}"], scores[f"base_{module.name}"], strict=True)
    pairs = [(i, *values) for i, values in enumerate(sides) if not any(map(math.isnan, values))]
    paired = PairedRows(
        row_ids=tuple(rows.ids[indices[i]] for i, _, _ in pairs),
        candidate=tuple(own for _, own, _ in pairs),
        champion=tuple(others for _, _, others in pairs),
        clusters=tuple(clusters[i] for i, _, _ in pairs) if clusters is not None else None,
    )
    return Gain(module.name, over, paired, module.higher_is_better, number, discoveries)


def _with_a_width(gain: Interval) -> Interval:
    """Return the interval, with unknown ends where all resamples are equal: then they say nothing about the spread."""
    return Interval(gain.value, -math.inf, math.inf, gain.method) if gain.low == gain.high else gain


def recorded_answers(
    client: MlflowClient, experiment_id: str, adapters: Sequence[str]
) -> dict[tuple[str, str], AnswerSet]:
    """Return the answers of adapters in earlier decisions and checks. Answers that cannot be read are left out.

    Args:
        client: The tracking server.
        experiment_id: The experiment that records the model's decisions.
        adapters: Digests of the adapters.
    """
    from mlflow.exceptions import MlflowException

    known: dict[tuple[str, str], AnswerSet] = {}
    has_answers = f"tags.`{SIDES_TAG}` LIKE '%'"  # leaves out the many checks that measured nothing
    for run in client.search_runs([experiment_id], has_answers, max_results=200):
        if not {run.data.tags.get(tag) for tag in ADAPTER_TAGS} & set(adapters):
            continue
        digest = run.data.tags[SIDES_TAG]
        try:
            with tempfile.TemporaryDirectory() as scratch:
                text = Path(client.download_artifacts(run.info.run_id, ANSWERS_FILE, scratch)).read_text(
                    encoding="utf-8"
                )
            if hashlib.sha256(text.encode()).hexdigest() != digest:
                raise ValueError("the file is not the one that the run wrote")
            answers = {
                (str(entry["adapter"]), str(entry["rows"])): answer_set_from(entry) for entry in json.loads(text)
            }
        except (MlflowException, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("the answers in run %s are measured again: %s", run.info.run_id, in_short(error))
            continue
        for key, answer_set in answers.items():
            if key[0] in adapters:
                known.setdefault(key, answer_set)
    return known


def answers_json(answers: dict[tuple[str, str], AnswerSet]) -> str:
    """Return answers as the JSON that ``recorded_answers`` reads."""
    return json.dumps(
        [{"adapter": adapter, "rows": rows, **answer_set_content(entry)} for (adapter, rows), entry in answers.items()],
        ensure_ascii=False,
    )
