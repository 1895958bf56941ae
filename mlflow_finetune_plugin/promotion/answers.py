"""What versions answer to rows: their own run's proof, an earlier decision's or look's, or asked now; and the two compared."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.errors import in_short
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED, MetricModule
from mlflow_finetune_plugin.evaluation.results import EvalRow, Interval
from mlflow_finetune_plugin.gate.evidence import Gain, Latency
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows
from mlflow_finetune_plugin.promotion.held_out import HeldOut, answer_set_content, answer_set_from, proof_answers
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion
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
"""Of such a run: what its versions answered, by adapter and rows, so that the next need not ask again."""

WATCHED_TAGS = (WATCH_CHAMPION_DIGEST_TAG, WATCH_PREVIOUS_DIGEST_TAG)
"""Of a look's run: the adapters that it looked at."""
ADAPTER_TAGS = (MOVE_CANDIDATE_DIGEST_TAG, MOVE_CHAMPION_DIGEST_TAG, *WATCHED_TAGS)
"""Of runs that may hold such a file: whose answers."""

Note = Callable[[str], None]


class RowAnswerer(Protocol):
    """Whoever answers rows as a version does: the model itself, or an endpoint that serves it."""

    def answer(self, rows: Sequence[EvalRow], max_new_tokens: int) -> AnswerSet: ...


@dataclass
class Sources:
    """Where evidence may come from. ``speaker``: of a version, made when something has to be asked of it.

    ``latency``: a probe run's, which goes before the router's; ``known``: sides of earlier decisions, by (adapter, rows).
    """

    speaker: Callable[[ProvenVersion], RowAnswerer]
    served: Callable[[ProvenVersion], RowAnswerer] | None = None
    latency: Latency | None = None
    known: dict[tuple[str, str], AnswerSet] = field(default_factory=dict)
    measured: dict[tuple[str, str], AnswerSet] = field(default_factory=dict)


def answers_on(version: ProvenVersion, rows: HeldOut, sources: Sources, say: Note) -> AnswerSet:
    """From its own proof, an earlier decision, or now."""
    place = (version.adapter_digest, rows.digest)
    table, own = version.proof_table, version.held_out
    if version.is_run_s_own and table is not None and own is not None and own.digest == rows.digest:
        return proof_answers(table, "adapter", rows.rows, f"{version.uri}'s proof")
    for known in (sources.known, sources.measured):
        if place in known and len(known[place].answers) == len(known[place].nats) == len(rows.rows):
            return known[place]
    say(f"asking {version.uri} {len(rows.rows):,} rows")
    sources.measured[place] = sources.speaker(version).answer(rows.rows, rows.max_new_tokens)
    return sources.measured[place]


def are_unseen(rows: Sequence[EvalRow], sides: Sequence[ProvenVersion], notes: list[str]) -> list[bool]:
    """Whether neither side was trained on a row: for what it has learnt by heart a version's answer is no evidence."""
    unseen = [True] * len(rows)
    for side in sides:
        known = side.trained_rows
        if known is None:
            notes.append(f"{side.uri}: whether it was trained on these rows is not known, its run does not tell")
            continue
        hashes, seed = known
        seen = [hash_eval_row(row, seed) in hashes for row in rows]
        if any(seen):
            notes.append(f"{side.uri} was trained on {sum(seen):,} of {len(rows):,} held-out rows: they are left out")
        unseen = [is_new and not was_seen for is_new, was_seen in zip(unseen, seen, strict=True)]
    return unseen


def metric_of(name: str | None, candidate: ProvenVersion, rows: HeldOut) -> MetricModule:
    """By the name in a policy; a file's own travels with the proof."""
    of_proof = candidate.held_out.metrics if candidate.held_out is not None else rows.metrics
    wanted = Path(name or next(iter(of_proof))).name
    (module,) = load_metrics([wanted if wanted in PACKAGED else candidate.metric_file(wanted)])
    return module


def compared(
    module: MetricModule, rows: HeldOut, kept: list[int], own: AnswerSet, against: AnswerSet, over: str
) -> Gain:
    asked = [rows.rows[i] for i in kept]
    drawn_with = rows.clusters
    clusters = [drawn_with[i] for i in kept] if drawn_with is not None else None
    result, scores = compare(module, asked, against.at(kept), own.at(kept), seed=0, clusters=clusters)
    if not scores:
        return Gain(module.name, over, _with_a_width(result.gain), module.higher_is_better)  # type: ignore[arg-type]
    paired = PairedRows(
        row_ids=tuple(rows.ids[i] for i in kept),
        candidate=tuple(scores[f"adapter_{module.name}"]),
        champion=tuple(scores[f"base_{module.name}"]),
        clusters=tuple(clusters) if clusters is not None else None,
    )
    return Gain(module.name, over, paired, module.higher_is_better)  # type: ignore[arg-type]


def _with_a_width(gain: Interval) -> Interval:
    """Where no resample differs from another nothing was learnt of the spread: the ends are unknown, not where the value is."""
    return Interval(gain.value, -math.inf, math.inf, gain.method) if gain.low == gain.high else gain


def recorded_answers(
    client: MlflowClient, experiment_id: str, adapters: Sequence[str]
) -> dict[tuple[str, str], AnswerSet]:
    """What the adapters (digests) answered in earlier decisions and looks. Those that cannot be read any more are measured again."""
    from mlflow.exceptions import MlflowException

    found: dict[tuple[str, str], AnswerSet] = {}
    measured = f"tags.`{SIDES_TAG}` LIKE '%'"  # looks that measured nothing are many
    for run in client.search_runs([experiment_id], measured, max_results=200):
        if not {run.data.tags.get(tag) for tag in ADAPTER_TAGS} & set(adapters):
            continue
        digest = run.data.tags[SIDES_TAG]
        try:
            with tempfile.TemporaryDirectory() as scratch:
                text = Path(client.download_artifacts(run.info.run_id, ANSWERS_FILE, scratch)).read_text(
                    encoding="utf-8"
                )
            if hashlib.sha256(text.encode()).hexdigest() != digest:
                raise ValueError("it is not what the run wrote")
            sides = {(str(told["adapter"]), str(told["rows"])): answer_set_from(told) for told in json.loads(text)}
        except (MlflowException, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("answers of run %s are asked for again: %s", run.info.run_id, in_short(error))
            continue
        for place, side in sides.items():
            if place[0] in adapters:
                found.setdefault(place, side)
    return found


def answers_json(sides: dict[tuple[str, str], AnswerSet]) -> str:
    return json.dumps(
        [{"adapter": adapter, "rows": rows, **answer_set_content(side)} for (adapter, rows), side in sides.items()],
        ensure_ascii=False,
    )
