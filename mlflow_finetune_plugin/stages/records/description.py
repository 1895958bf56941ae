"""The texts for people: one line for each result of a run, and the description on the run's and the version's page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.evaluation.results import EvalReport, Interval, MetricResult, RewardFigures
from mlflow_finetune_plugin.evaluation.scale import describe_forgetting, forgetting_text
from mlflow_finetune_plugin.jobs.console import Colour
from mlflow_finetune_plugin.planning.plan import Plan

HELD_OUT = "held-out"

_METRIC_LABELS = {"rougeL": "ROUGE-L", "chrf": "chrF", "bleu": "BLEU", "f1": "F1", "token_f1": "token F1"}
_SHOWN_FILES = 3
_FORGETTING_COLOURS: dict[str, Colour] = {"none": "green", "small": "green", "moderate": "yellow", "large": "red"}


def metric_label(name: str) -> str:
    """Return a metric's name as people write it: ``exact_match`` is exact match."""
    return _METRIC_LABELS.get(name, name.replace("_", " "))


def metric_line(metric: MetricResult, *, rows: str = HELD_OUT, other: str = "the base") -> str:
    """Return the verdict on one metric, then both values, the gain and its interval.

    ``rows`` says what the rows are; they are held out unless the caller brought his own. ``other`` is what the adapter is
    compared with.
    """
    gain = metric.gain
    verdict = f"better than {other}" if gain.low > 0 else f"worse than {other}" if gain.high < 0 else "no clear gain"
    if verdict == "no clear gain" and other != "the base":
        verdict = f"no clear gain over {other}"
    return (
        f"{verdict}: {metric_label(metric.name)} {metric.base:.3g} -> {metric.adapter:.3g} on {metric.rows:,} {rows} rows, "
        f"gain {gain.value:+.3g} ({_interval(gain)})"
    )


def _interval(gain: Interval) -> str:
    """Return a gain's interval in words, or why it has none."""
    if math.isinf(gain.low) and math.isinf(gain.high):
        return f"no interval: {gain.method.removeprefix('none: ')}"
    return f"95 % interval {gain.low:+.3g} to {gain.high:+.3g}"


def no_interval_line(proof: EvalReport, *, of_votes: bool) -> str | None:
    """Return what too few groups for an interval mean for a promotion, and the ways out; None where there are enough.

    Args:
        proof: The proof.
        of_votes: Whether the rows are votes, which are held out by groups of voters and prompts.
    """
    gain = proof.metrics[0].gain
    if "clusters" not in gain.method or math.isfinite(gain.low) or math.isfinite(gain.high):
        return None
    rows = "held-out votes of few groups of voters" if of_votes else "held-out rows of few groups"
    return (
        f"the gain has no interval ({gain.method.removeprefix('none: ')}), because these are {rows}, so the gate cannot promote by it; "
        "fix: a larger data.eval, a file of other rows as data.eval, or let people's votes decide (register.gate.votes.required: true)"
    )


def length_line(before: float, after: float, *, other: str = "the base") -> str:
    """Return how long the generated answers are, in tokens, beside those of the side that the adapter is compared with."""
    return f"length: generated answers have {before:.1f} tokens with {other}, {after:.1f} with the adapter (means)"


def proof_lines(proof: EvalReport, *, rows: str = HELD_OUT) -> list[str]:
    """Return one line for each metric, for each task its first metric, one for the length of answers and one for forgetting."""
    return list(coloured_proof_lines(proof, rows=rows))


def coloured_proof_lines(proof: EvalReport, *, rows: str = HELD_OUT) -> dict[str, Colour | None]:
    """Return the lines of ``proof_lines``, each with the colour of its verdict, if it has one."""
    lines: dict[str, Colour | None] = {
        metric_line(metric, rows=rows, other=proof.over): _gain_colour(metric) for metric in proof.metrics
    }
    for task, results in proof.tasks.items():
        lines[f"{task}: {metric_line(results[0], rows=rows)}"] = _gain_colour(results[0])
    if proof.lengths is not None:
        lines[length_line(proof.lengths.base, proof.lengths.adapter)] = None
    if proof.rewards is not None:
        lines |= dict.fromkeys(reward_lines(proof.rewards), "yellow" if proof.rewards.accuracy.low <= 0.5 else "green")
    if proof.forgetting is not None:
        line = f"forgetting: {forgetting_text(proof.forgetting)} on general text"
        lines[line] = _FORGETTING_COLOURS[describe_forgetting(proof.forgetting.value)]
    return lines


def reward_lines(figures: RewardFigures) -> Iterator[str]:
    """Yield what the rewards of the held-out pairs show: accuracy, size, calibration, and how they follow the length."""
    accuracy = figures.accuracy
    yield (
        f"rewards the better answer in {accuracy.value:.1%} of the pairs (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%}; "
        f"chance is 50 %); mean margin {figures.margin:+.3g}, rewards {figures.mean:+.3g} ± {figures.deviation:.3g}"
    )
    shares = ", ".join(
        f"{bucket.right:.0%} of {bucket.pairs:,} where it says {bucket.expected:.0%}" for bucket in figures.calibration
    )
    yield f"calibration: right in {shares}; expected error {figures.calibration_error:.3g}"
    correlation = figures.length_correlation
    yield (
        f"length: the longer answer is the better one in {figures.longer_wins:.0%} of the pairs; rewards "
        + ("do not vary with it" if correlation is None else f"correlate with it by {correlation:+.2f}")
    )
    yield "forgetting: not measured, because a reward model writes no text"


def _gain_colour(metric: MetricResult) -> Colour:
    return "green" if metric.gain.low > 0 else "red" if metric.gain.high < 0 else "yellow"


def summary(proof: EvalReport, uri: str, *, rows: str = HELD_OUT) -> str:
    """Return the run in one line."""
    return f"{metric_line(proof.metrics[0], rows=rows, other=proof.over)}; {uri}"


def run_description(plan: Plan, data: PreparedData, proof: EvalReport | None = None, uri: str | None = None) -> str:
    """Return the description on the run's page as Markdown: what is trained from what, on how many rows, with which result.

    Without a proof the run has not finished, and the description says so.
    """
    tasks = sum(task is not None for task in {file.task for file in plan.config.data.train})
    text = (
        f"**{_head(plan)}**, trained on {len(data.train):,} rows of {_files(plan.config.data.train)}"
        f"{f' ({tasks} tasks)' if tasks > 1 else ''}; {len(data.eval_rows):,} rows are held out."
    )
    if proof is None:
        return f"{text}\n\nThe result appears here when the run has finished."
    model = [] if uri is None else [f"Model: `{uri}`"]
    return "\n".join([text, "", *(f"- {line}" for line in [*proof_lines(proof), *model])])


def version_description(plan: Plan, proof: EvalReport) -> str:
    """Return the description on the version's page as Markdown."""
    over = "its base" if proof.rewards is None else proof.over
    word = [] if proof.is_better else [f"**Not better than {over}.**", ""]
    use = [] if proof.rewards is None else ["A reward model: it scores conversations and writes no answers.", ""]
    return "\n".join([_head(plan), "", *use, *word, *(f"- {line}" for line in proof_lines(proof))])


def _head(plan: Plan) -> str:
    start = "" if plan.start is None else f", started from {plan.start.uri}"
    return f"{plan.config.adaptation} x {plan.config.objective} on {plan.base.name}{start}"


def _files(files: Sequence[DataFileSettings]) -> str:
    names = [file.path.rpartition("/")[2] or file.path for file in files]
    more = f" and {len(names) - _SHOWN_FILES} more files" if len(names) > _SHOWN_FILES else ""
    return ", ".join(names[:_SHOWN_FILES]) + more
