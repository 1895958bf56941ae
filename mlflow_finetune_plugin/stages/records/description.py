"""The texts for people: one line for each result of a run, and the description on the run's and the version's page."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.evaluation.results import EvalReport, MetricResult
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


def metric_line(metric: MetricResult, *, rows: str = HELD_OUT) -> str:
    """Return the verdict on one metric, then both values, the gain and its interval.

    ``rows`` says what the rows are; they are held out unless the caller brought his own.
    """
    gain = metric.gain
    verdict = "better than the base" if gain.low > 0 else "worse than the base" if gain.high < 0 else "no clear gain"
    return (
        f"{verdict}: {metric_label(metric.name)} {metric.base:.3g} -> {metric.adapter:.3g} on {metric.rows:,} {rows} rows, "
        f"gain {gain.value:+.3g} (95 % interval {gain.low:+.3g} to {gain.high:+.3g})"
    )


def proof_lines(proof: EvalReport, *, rows: str = HELD_OUT) -> list[str]:
    """Return one line for each metric, for each task its first metric, and one for forgetting."""
    return list(coloured_proof_lines(proof, rows=rows))


def coloured_proof_lines(proof: EvalReport, *, rows: str = HELD_OUT) -> dict[str, Colour]:
    """Return the lines of ``proof_lines``, each with the colour of its verdict."""
    lines = {metric_line(metric, rows=rows): _gain_colour(metric) for metric in proof.metrics}
    for task, results in proof.tasks.items():
        lines[f"{task}: {metric_line(results[0], rows=rows)}"] = _gain_colour(results[0])
    if proof.forgetting is not None:
        line = f"forgetting: {forgetting_text(proof.forgetting)} on general text"
        lines[line] = _FORGETTING_COLOURS[describe_forgetting(proof.forgetting.value)]
    return lines


def _gain_colour(metric: MetricResult) -> Colour:
    return "green" if metric.gain.low > 0 else "red" if metric.gain.high < 0 else "yellow"


def summary(proof: EvalReport, uri: str, *, rows: str = HELD_OUT) -> str:
    """Return the run in one line."""
    return f"{metric_line(proof.metrics[0], rows=rows)}; {uri}"


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
    word = [] if proof.metrics[0].is_better else ["**Not better than its base.**", ""]
    return "\n".join([_head(plan), "", *word, *(f"- {line}" for line in proof_lines(proof))])


def _head(plan: Plan) -> str:
    return f"{plan.config.adaptation} x {plan.config.objective} on {plan.base.name}"


def _files(files: Sequence[DataFileSettings]) -> str:
    names = [file.path.rpartition("/")[2] or file.path for file in files]
    more = f" and {len(names) - _SHOWN_FILES} more files" if len(names) > _SHOWN_FILES else ""
    return ", ".join(names[:_SHOWN_FILES]) + more
