"""Evidence for a policy, out of MLflow: what is not there yet is measured, on the very rows, once per pair of versions."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlflow_finetune_plugin.data.split import hash_eval_row
from mlflow_finetune_plugin.errors import GateError, in_short
from mlflow_finetune_plugin.evaluation.comparison import Side, compare, load_metrics
from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED, MetricModule
from mlflow_finetune_plugin.gate.evidence import Evidence, Gain, Latency, Regression, Votes
from mlflow_finetune_plugin.gate.paired import PairedRows
from mlflow_finetune_plugin.gate.policy import GainPolicy, GatePolicy
from mlflow_finetune_plugin.promotion.held_out import HeldOut, side_from_json, side_json, side_of
from mlflow_finetune_plugin.promotion.versions import ProvenVersion
from mlflow_finetune_plugin.served_answers import logged_latency
from mlflow_finetune_plugin.types import EvalRow, Interval

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.votes import Reading

logger = logging.getLogger(__name__)

SIDES_TAG = "finetune.sides_digest"
"""Of a decision's run that has such a file: its sha256."""
SIDES_FILE = "sides.json"
"""Of a decision's run: what its versions answered, by adapter and rows, so that the next decision need not ask again."""

Note = Callable[[str], None]


class Speaks(Protocol):
    """Whoever answers rows as a version does: the model itself, or an endpoint that serves it."""

    def answer(self, rows: Sequence[EvalRow], max_new_tokens: int) -> Side: ...


@dataclass
class Sources:
    """Where evidence may come from. ``speaker``: of a version, made when something has to be asked of it.

    ``latency``: a probe run's, which goes before the router's; ``known``: sides of earlier decisions, by (adapter, rows).
    """

    speaker: Callable[[ProvenVersion], Speaks]
    served: Callable[[ProvenVersion], Speaks] | None = None
    latency: Latency | None = None
    known: dict[tuple[str, str], Side] = field(default_factory=dict)
    measured: dict[tuple[str, str], Side] = field(default_factory=dict)


@dataclass(frozen=True)
class Collected:
    """``notes``: what a person should know of how the evidence came about, a line each."""

    evidence: Evidence
    notes: tuple[str, ...]


def collect(
    policy: GatePolicy, candidate: ProvenVersion, champion: ProvenVersion | None, sources: Sources, say: Note
) -> Collected:
    """Only what the policy asks for is measured. Raises GateError for evidence that is broken, TrackingError, ReloadError."""
    notes: list[str] = []
    gain = _gain(policy.gain, candidate, champion, sources, say, notes) if policy.gain is not None else None
    evidence = Evidence(
        has_champion=champion is not None,
        gain=gain,
        forgetting=candidate.forgetting if policy.forgetting is not None else None,
        votes=_votes(candidate, champion, notes) if policy.votes is not None else None,
        latency=_latency(candidate, champion, sources, notes) if policy.latency is not None else None,
        regressions=tuple(_regressions(policy, candidate, sources, say)),
    )
    return Collected(evidence, tuple(notes))


def known_sides(client: MlflowClient, experiment_id: str, adapters: Sequence[str]) -> dict[tuple[str, str], Side]:
    """What the adapters (digests) answered in earlier decisions. Those that cannot be read any more are measured again."""
    from mlflow.exceptions import MlflowException

    found: dict[tuple[str, str], Side] = {}
    for run in client.search_runs([experiment_id], max_results=200):
        if not {
            run.data.tags.get("finetune.move.candidate_digest"),
            run.data.tags.get("finetune.move.champion_digest"),
        } & set(adapters):
            continue
        digest = run.data.tags.get(SIDES_TAG)
        if digest is None:
            continue  # it measured nothing
        try:
            with tempfile.TemporaryDirectory() as scratch:
                text = Path(client.download_artifacts(run.info.run_id, SIDES_FILE, scratch)).read_text(encoding="utf-8")
            if hashlib.sha256(text.encode()).hexdigest() != digest:
                raise ValueError("it is not what the decision wrote")
            sides = {(str(told["adapter"]), str(told["rows"])): side_from_json(told) for told in json.loads(text)}
        except (MlflowException, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("answers of decision %s are asked for again: %s", run.info.run_id, in_short(error))
            continue
        for place, side in sides.items():
            if place[0] in adapters:
                found.setdefault(place, side)
    return found


def sides_json(sides: dict[tuple[str, str], Side]) -> str:
    return json.dumps(
        [{"adapter": adapter, "rows": rows, **side_json(side)} for (adapter, rows), side in sides.items()],
        ensure_ascii=False,
    )


# the gain ----------------------------------------------------------------------------------------------------------------


def _gain(
    policy: GainPolicy,
    candidate: ProvenVersion,
    champion: ProvenVersion | None,
    sources: Sources,
    say: Note,
    notes: list[str],
) -> Gain | None:
    rows = candidate.held_out
    if rows is None:
        notes.append(f"{candidate.uri}: its run kept no held-out rows, so nothing can be compared on them")
        return None
    over_champion = policy.over == "champion" and champion is not None
    other = champion if over_champion else None
    if candidate.trained_rows is None:
        notes.append(f"{candidate.uri}: what it was trained on is not known, so held-out rows prove nothing")
        return None
    kept = [
        i for i, is_new in enumerate(_are_unseen(rows.rows, [candidate, *([other] if other else [])], notes)) if is_new
    ]
    if not kept:
        notes.append("every held-out row was trained on by one side or the other")
        return None
    module = _metric(policy.metric, candidate, rows)
    if policy.through == "serving":
        if sources.served is None:
            notes.append(
                "the policy asks for answers through serving; fix: --endpoint URL of the router that serves both"
            )
            return None
        if module.reads_likelihoods:
            raise GateError(f"{module.name} reads likelihoods, which serving does not tell; fix: gain.through: model")
        say(f"asking for {len(rows.rows):,} held-out rows through serving")
        own = sources.served(candidate).answer(rows.rows, rows.max_new_tokens)
        against = (
            sources.served(other).answer(rows.rows, rows.max_new_tokens)
            if other is not None
            else _base_side(candidate, rows)
        )
    else:
        own = _side(candidate, rows, sources, say)
        against = _side(other, rows, sources, say) if other is not None else _base_side(candidate, rows)
    if against is None:
        notes.append(f"{candidate.uri}: its run kept no answers of the base")
        return None
    return _compared(module, rows, kept, own, against, "champion" if other is not None else "base")


def _compared(module: MetricModule, rows: HeldOut, kept: list[int], own: Side, against: Side, over: str) -> Gain:
    asked = [rows.rows[i] for i in kept]
    clusters = [rows.clusters[i] for i in kept] if rows.clusters is not None else None
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


def _metric(name: str | None, candidate: ProvenVersion, rows: HeldOut) -> MetricModule:
    """By the name in a policy; a file's own travels with the proof."""
    of_proof = candidate.held_out.metrics if candidate.held_out is not None else rows.metrics
    wanted = Path(name or next(iter(of_proof))).name
    (module,) = load_metrics([wanted if wanted in PACKAGED else candidate.metric_file(wanted)])
    return module


def _are_unseen(rows: Sequence[EvalRow], sides: Sequence[ProvenVersion], notes: list[str]) -> list[bool]:
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


def _side(version: ProvenVersion, rows: HeldOut, sources: Sources, say: Note) -> Side:
    """From its own proof, an earlier decision, or now."""
    place = (version.adapter_digest, rows.digest)
    table, own = version.proof_table, version.held_out
    if version.is_run_s_own and table is not None and own is not None and own.digest == rows.digest:
        return side_of(table, "adapter", rows.rows, f"{version.uri}'s proof")
    for known in (sources.known, sources.measured):
        if place in known and len(known[place].answers) == len(known[place].nats) == len(rows.rows):
            return known[place]
    say(f"asking {version.uri} {len(rows.rows):,} held-out rows")
    sources.measured[place] = sources.speaker(version).answer(rows.rows, rows.max_new_tokens)
    return sources.measured[place]


def _base_side(candidate: ProvenVersion, rows: HeldOut) -> Side | None:
    table = candidate.proof_table
    return None if table is None else side_of(table, "base", rows.rows, f"{candidate.uri}'s proof")


# the rest ----------------------------------------------------------------------------------------------------------------


def _regressions(policy: GatePolicy, candidate: ProvenVersion, sources: Sources, say: Note) -> Iterator[Regression]:
    for regression in policy.regressions:
        rows = candidate.regression_rows(regression.data)
        side = _side(candidate, rows, sources, say)
        module = _metric(regression.metric, candidate, rows)
        if not module.higher_is_better:
            raise GateError(
                f"{regression.metric} on {regression.data}: less is better, so at_least asks nothing; fix: another metric"
            )
        result, _ = compare(module, rows.rows, side, side, seed=0)
        yield Regression(regression.data, regression.metric, result.adapter)


def _votes(candidate: ProvenVersion, champion: ProvenVersion | None, notes: list[str]) -> Votes | None:
    if champion is None:
        notes.append("there is no champion, so no votes between it and the candidate")
        return None
    from mlflow_finetune_plugin.votes import gate_votes, read_votes

    reading = read_votes(candidate.name)
    refused = [f"{count:,} {why}" for why, count in reading.not_counted.items()]
    if refused:
        notes.append(f"votes that do not count: {', '.join(refused)}")
    votes = gate_votes(reading, candidate.number, champion.number)
    return Votes(votes, _stood(reading, candidate.number, champion.number)) if votes else None


def _stood(reading: Reading, candidate: str, champion: str) -> int:
    """The how-manyeth pair this is that people voted on, in the order of the first votes: each pair is a test of its own."""
    stood = dict.fromkeys(
        vote.told.versions for vote in reading.votes if vote.fault is None and vote.told.kind == "person"
    )
    pair = frozenset({candidate, champion})
    return [*dict.fromkeys([*stood, pair])].index(pair) + 1


def _latency(
    candidate: ProvenVersion, champion: ProvenVersion | None, sources: Sources, notes: list[str]
) -> Latency | None:
    if sources.latency is not None:
        notes.append("latency: of a probe run through the endpoint, one request at a time")
        return sources.latency
    own = logged_latency(candidate.tags, candidate.uri, notes)
    other = logged_latency(champion.tags, champion.uri, notes) if champion is not None else None
    return None if own is None else Latency(own, other)
