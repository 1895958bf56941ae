"""Gains on held-out rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from gate_scenarios.scenario import Rng, Trial, error, power
from mlflow_finetune_plugin.evaluation.intervals import paired_binary_interval
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.gate.criteria import judge_gain
from mlflow_finetune_plugin.gate.evidence import Evidence, Gain
from mlflow_finetune_plugin.gate.policy import GainPolicy, GatePolicy
from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows
from mlflow_finetune_plugin.gate.verdict import judge

Clusters = tuple | None
Draw = Callable[[Rng], tuple[np.ndarray, np.ndarray, Clusters]]
"""Returns the candidate's scores, the champion's, and the clusters of the rows."""

IS_NUMBERED = "number" in inspect.signature(Gain).parameters
"""The first preview does not number gains, and chooses the best checkpoint by the held-out rows."""
ASKS_CHAMPION_ROWS = "champion_rows" in inspect.signature(Evidence).parameters
NAMES_GROUPS = "group" in inspect.signature(EvalRow).parameters
ALPHA = 0.025


def paired(candidate: np.ndarray, champion: np.ndarray, clusters: Clusters = None) -> PairedRows:
    names = tuple(map(str, range(len(candidate))))
    return PairedRows(names, tuple(candidate.tolist()), tuple(champion.tolist()), clusters)


def measured(candidate: np.ndarray, champion: np.ndarray, clusters: Clusters = None, *, number: int = 1) -> Gain:
    numbered = {"number": number} if IS_NUMBERED else {}
    return Gain("exact_match", "champion", paired(candidate, champion, clusters), **numbered)


def passes(candidate: np.ndarray, champion: np.ndarray, clusters: Clusters = None, *, number: int = 1) -> bool:
    """Judge one gain, the test with this ``number`` before any was shown."""
    gain = measured(candidate, champion, clusters, number=number)
    return judge_gain(GainPolicy(), Evidence(True, gain=gain)).outcome == "pass"


def promoted_by_gain(draw: Draw) -> Trial:
    """Judge the first gain of a model."""
    return lambda rng: passes(*draw(rng))


def after(candidates: int, draw: Draw) -> Trial:
    """Judge a better candidate after so many that were not."""
    return lambda rng: passes(*draw(rng), number=candidates + 1)


def any_passes(sides: Iterable[tuple[np.ndarray, np.ndarray]]) -> bool:
    """Judge one gain after another in rows of 0 and 1."""
    for number, (candidate, champion) in enumerate(sides, 1):
        part = candidate_alpha(ALPHA, number) if IS_NUMBERED else ALPHA
        # The gate's interval holds Tango's, so a gain that this one does not show needs no simulation of the wider one.
        if paired_binary_interval(champion, candidate, 1 - 2 * part).low <= 0:
            continue
        if passes(candidate, champion, number=number):
            return True
    return False


def hits(rng: Rng, ease: np.ndarray) -> np.ndarray:
    return (rng.random(len(ease)) < ease).astype(float)


def any_of(candidates: int) -> Trial:
    """Judge candidates that are as good as the champion, one after another on the same 200 rows."""

    def trial(rng: Rng) -> bool:
        ease = rng.beta(2, 1, 200)
        champion = hits(rng, ease)
        return any_passes((hits(rng, ease), champion) for _ in range(candidates))

    return trial


def any_metric(metrics: int) -> Trial:
    """Judge an equal candidate by metric after metric. Each metric rates half of the answers as the first one does."""

    def trial(rng: Rng) -> bool:
        ease = rng.beta(2, 1, 200)
        first = hits(rng, ease), hits(rng, ease)
        others = (
            tuple(np.where(rng.random(200) < 0.5, side, hits(rng, ease)) for side in first) for _ in range(metrics)
        )
        return any_passes(others)

    return trial


def best_checkpoint(rng: Rng, gain: float) -> tuple[np.ndarray, np.ndarray, Clusters]:
    """The best of 10 checkpoints, each of which answers half of the rows as the one before does, and a champion.

    It is chosen by 200 validation rows, in the first preview by the 200 held-out rows.
    """
    ease = rng.beta(2, 1, 400)
    champion, better = hits(rng, ease), np.clip(ease + gain, 0, 1)
    checkpoints = [hits(rng, better)]
    for _ in range(9):
        checkpoints.append(np.where(rng.random(400) < 0.5, checkpoints[-1], hits(rng, better)))
    held_out, validation = slice(200), slice(200, 400)
    chosen_by = validation if IS_NUMBERED else held_out
    best = max(checkpoints, key=lambda checkpoint: checkpoint[chosen_by].sum())
    return best[held_out], champion[held_out], None


def few_differ(expected: float, *, graded: bool, repeats: bool) -> Draw:
    """200 rows of equal models, of which ``expected`` differ; with ``repeats`` two rows share a question."""

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
        differs, wins = rng.random(200) < expected / 200, rng.random(200) < 0.5
        size = rng.uniform(0.2, 1, 200) if graded else np.ones(200)
        return differs * wins * size, differs * ~wins * size, (*range(199), 198) if repeats else None

    return draw


def few_rows(rows: int) -> Draw:
    """So many rows, of which all differ, and models that are equal."""

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
        wins = rng.random(rows) < 0.5
        return wins.astype(float), (~wins).astype(float), None

    return draw


def documents(count: int, rows: int) -> Draw:
    """Rows of documents, declared as clusters: the candidate wins or loses whole documents."""

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
        shares = np.repeat(rng.beta(0.5, 0.5, count), rows)
        differs, wins = rng.random(count * rows) < 0.5, rng.random(count * rows) < shares
        names = tuple(np.repeat(np.arange(count), rows).tolist())
        return (differs & wins).astype(float), (differs & ~wins).astype(float), names

    return draw


def grouped(count: int, rows: int, *, is_named: bool) -> Draw:
    """The same, with the clusters that the gate finds in the rows if ``data.group`` names their column, or without it.

    The first preview cannot name it.
    """
    from mlflow_finetune_plugin.evaluation.clusters import clusters_of

    held_out = [
        EvalRow(({"role": "user", "content": f"q{i}"},), (1,), (2,), "yes", "t", "rows.csv", i, group=str(i // rows))
        for i in range(count * rows)
    ]
    clusters = clusters_of([row if is_named else replace(row, group=None) for row in held_out])
    of_documents = documents(count, rows)
    return lambda rng: (*of_documents(rng)[:2], clusters)


def with_group(count: int, rows: int) -> Draw:
    if NAMES_GROUPS:
        return grouped(count, rows, is_named=True)
    of_documents = documents(count, rows)
    return lambda rng: (*of_documents(rng)[:2], None)


def gains(share: float, gained: float, *, repeats: bool = False) -> Draw:
    """200 rows of which ``share`` differ, the candidate right on ``gained`` of these."""

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
        differs, wins = rng.random(200) < share, rng.random(200) < gained
        return (differs & wins).astype(float), (differs & ~wins).astype(float), (*range(199), 198) if repeats else None

    return draw


def rare_disaster(rows: int) -> Draw:
    """A candidate that gains 0.02 on nearly every row, and loses 0.98 on 2 % of them: no better, with a gain of 0 in the mean."""

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
        gain = np.where(rng.random(rows) < 0.02, -0.98, 0.02 + rng.normal(0, 0.005, rows))
        return np.maximum(gain, 0), np.maximum(-gain, 0), None

    return draw


def graded(rows: int, gain: float, spread: float) -> Draw:
    """Rows of a graded metric, such as token_f1, with normal differences."""

    def draw(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
        gains = np.clip(rng.normal(gain, spread, rows), -1, 1)
        return np.maximum(gains, 0), np.maximum(-gains, 0), None

    return draw


def nearly_all(rng: Rng) -> tuple[np.ndarray, np.ndarray, Clusters]:
    right = np.ones(200)
    right[rng.permutation(200)[:3]] = 0
    return right, np.zeros(200), (*range(199), 198)


def own_rows(change: float) -> Trial:
    """A candidate that gains 0.20 on its own 200 rows, and changes by ``change`` on the champion's."""

    def trial(rng: Rng) -> bool:
        own = measured(*gains(0.3, 5 / 6)(rng))
        gained = (0.3 + change) / 2 / 0.3
        others = {"champion_rows": measured(*gains(0.3, gained)(rng))} if ASKS_CHAMPION_ROWS else {}
        return judge(GatePolicy(), Evidence(True, gain=own, **others)).outcome == "promote"

    return trial


SCENARIOS = [
    *[
        error(
            f"gain: {n} of 200 graded rows differ",
            promoted_by_gain(few_differ(n, graded=True, repeats=False)),
            ALPHA,
            audit,
            share=0.5,
        )
        for n, audit in ((1, "5.5"), (2, "9.8"), (3, "10.1"), (4, "8.5"))
    ],
    *[
        error(
            f"gain: {n} of 200 differ, a repeated question",
            promoted_by_gain(few_differ(n, graded=False, repeats=True)),
            ALPHA,
        )
        for n in (2, 4)
    ],
    error("gain: 4 rows, all differ", promoted_by_gain(few_rows(4)), ALPHA),
    *[
        error(f"gain: 20 documents of {n} rows, declared", promoted_by_gain(documents(20, n)), ALPHA, "2 to 3")
        for n in (10, 50)
    ],
    *[
        error(f"gain: 20 documents of {n} rows, named by data.group", promoted_by_gain(with_group(20, n)), ALPHA, audit)
        for n, audit in ((10, "13"), (50, "28"))
    ],
    *[
        error(f"gain: any of {n} equal candidates on the same rows", any_of(n), ALPHA, audit)
        for n, audit in ((5, "9.6"), (20, "22"), (50, "34"))
    ],
    error("gain: the best of 10 checkpoints", promoted_by_gain(lambda rng: best_checkpoint(rng, 0)), ALPHA, "8 to 13"),
    error("gain: any of 8 metrics for the same answers", any_metric(8), ALPHA),
    error("gain: 0.05 worse on the champion's rows", own_rows(-0.05), ALPHA),
    *[
        error(
            f"gain: of 0.02 with a rare disaster, {n} graded rows",
            promoted_by_gain(rare_disaster(n)),
            ALPHA,
            audit,
            share=0.5,
        )
        for n, audit in ((20, "68"), (50, "38"), (200, ""))
    ],
    power("gain: 0.10 of 200 rows, 30 % differ", promoted_by_gain(gains(0.3, 2 / 3))),
    power("gain: 0.10 of 200 rows, after 4 equal candidates", after(4, gains(0.3, 2 / 3)), share=0.5),
    power("gain: 0.20 of 200 rows, 30 % differ", promoted_by_gain(gains(0.3, 5 / 6))),
    power("gain: 0.20 of 200 rows, after 4 equal candidates", after(4, gains(0.3, 5 / 6)), share=0.5),
    power("gain: 0.20 of 200 rows, after 19 equal candidates", after(19, gains(0.3, 5 / 6)), share=0.5),
    power("gain: 0.10 of 200 rows, a repeated question", promoted_by_gain(gains(0.3, 2 / 3, repeats=True))),
    power("gain: 0.10 (deviation 0.20) of 40 graded rows", promoted_by_gain(graded(40, 0.10, 0.20))),
    power("gain: 0.05 (deviation 0.20) of 200 graded rows", promoted_by_gain(graded(200, 0.05, 0.20)), share=0.5),
    power("gain: 0.20 (deviation 0.30) of 50 graded rows", promoted_by_gain(graded(50, 0.20, 0.30))),
    power("gain: 0 to 197 of 200, a repeated question", promoted_by_gain(nearly_all)),
    power(
        "gain: the best of 10 checkpoints, each 0.15 better", promoted_by_gain(lambda rng: best_checkpoint(rng, 0.15))
    ),
    power("gain: 0.20 of 200 rows, as good on the champion's", own_rows(0)),
]
