"""Every ``auto`` of the eval section, decided by the held-out rows: the metrics and the longest answer."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.config.objective_problems import PAIR_METRIC
from mlflow_finetune_plugin.config.sections import EvalSettings
from mlflow_finetune_plugin.data.report.contents import DataFinding
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.evaluation.metric_modules import is_reward
from mlflow_finetune_plugin.evaluation.results import EvalRow, answer_room, has_reference
from mlflow_finetune_plugin.methods import Rollouts

_CLASSIFICATION_METRICS = ["exact_match", "f1", "perplexity"]
_SHORT_ANSWER_METRICS = ["exact_match", "token_f1", "perplexity"]
_LONG_ANSWER_METRICS = ["rougeL", "chrf", "perplexity"]
_SAMPLE_TOKENS = 64
_LONGEST_ANSWER_TOKENS = 1024
_WITHOUT_ANSWERS = {"perplexity", PAIR_METRIC}
"""Metrics that read the references' log-probabilities and no generated answer."""
LONG_REFERENCES = "references longer than answers may be"
_NOTED_SHARE = 0.01
"""The share of held-out rows above which such references are reported."""


def settle_eval(
    settings: EvalSettings,
    eval_rows: list[EvalRow],
    layouts: list[str],
    reasons: Reasons,
    rollouts: Rollouts | None = None,
    *,
    rewards: Sequence[str] = (),
    is_reward_model: bool = False,
) -> EvalSettings:
    """Return the eval section with metrics and answer length chosen by the held-out rows.

    Args:
        settings: The section as in the recipe.
        eval_rows: The held-out rows.
        layouts: The layout of each file.
        reasons: Receives the reason for each choice.
        rollouts: What the objective samples while it trains.
        rewards: The metrics of the objective's rewards, which come first.
        is_reward_model: Whether the result gives scores and writes no answers.

    Raises:
        ConfigError: No metric is left, because rows have no reference and there is no reward.
    """
    if is_reward_model:
        settings = _for_reward_model(settings, reasons)
    has_references = is_reward_model or all(map(has_reference, eval_rows))
    metrics = _metrics(settings, eval_rows, layouts, reasons, rewards, has_references)
    if not metrics:
        raise ConfigError(
            [
                "eval.metrics: the held-out rows have no reference answers, so nothing can be measured; fix: rows with a reference, "
                "or score the answers: -P reward=FILE.py:FUNCTION"
            ]
        )
    update: dict[str, object] = {"metrics": metrics}
    if settings.max_new_tokens == "auto":
        tokens, why = _answer_tokens(eval_rows, layouts, rollouts)
        update["max_new_tokens"] = tokens
        reasons["eval.max_new_tokens"] = f"{tokens}: {why}"
    return settings.model_copy(update=update)


def long_references(settings: EvalSettings, eval_rows: list[EvalRow], layouts: list[str]) -> DataFinding | None:
    """Return a finding where ``eval.max_new_tokens`` of the recipe cuts an answer before it could equal its reference."""
    limit = settings.max_new_tokens
    compares = settings.metrics == "auto" or not {*settings.metrics} <= _WITHOUT_ANSWERS
    if limit == "auto" or not compares or _are_texts(layouts):
        return None
    # The last token of a reference ends the turn, and an answer need not have it to be equal.
    lengths = [len(row.completion_ids) - 1 for row in eval_rows if has_reference(row)]
    count, longest = sum(length > limit for length in lengths), max(lengths, default=0)
    if count <= _NOTED_SHARE * len(lengths):
        return None
    text = f"of {len(eval_rows):,} held-out references are longer than eval.max_new_tokens = {limit}, so no answer can equal them"
    fix = f"remove eval.max_new_tokens, or set it to {longest} or more"
    return DataFinding(LONG_REFERENCES, count, text, (), "", fix)


def _for_reward_model(settings: EvalSettings, reasons: Reasons) -> EvalSettings:
    update: dict[str, object] = {"forgetting": False}
    reasons["eval.forgetting"] = "false: a reward model writes no text"
    if settings.metrics == "auto":
        update["metrics"] = [PAIR_METRIC]
        reasons["eval.metrics"] = f"{PAIR_METRIC}: a reward model compares the two answers of a pair"
    return settings.model_copy(update=update)


def _metrics(
    settings: EvalSettings,
    eval_rows: list[EvalRow],
    layouts: list[str],
    reasons: Reasons,
    rewards: Sequence[str],
    has_references: bool,
) -> list[str]:
    """Return the metrics of the rewards, and those of the recipe or of the rows that can be computed."""
    if settings.metrics == "auto":
        metrics, why = (
            _metrics_of(eval_rows, layouts) if has_references else ([], "no reference answers to compare with")
        )
        metrics = [*rewards, *metrics]
        reasons["eval.metrics"] = f"{', '.join(metrics)}: {why}"
        return metrics
    if has_references and not rewards:
        return list(settings.metrics)
    named = [metric for metric in settings.metrics if metric not in rewards]
    left_out = [metric for metric in named if not has_references and not is_reward(metric)]
    metrics = [*rewards, *(metric for metric in named if metric not in left_out)]
    if left_out:
        reasons["eval.metrics"] = (
            f"{', '.join(metrics)}: {', '.join(left_out)} left out, because not every held-out row has a reference"
        )
    return metrics


def _answer_tokens(eval_rows: list[EvalRow], layouts: list[str], rollouts: Rollouts | None) -> tuple[int, str]:
    """Return the longest answer in tokens, and the reason."""
    if rollouts is not None:
        return rollouts.max_completion_length, "as long as sampled completions"
    room = answer_room(eval_rows)
    if _are_texts(layouts):
        return min(room, _SAMPLE_TOKENS), "a sample for people; metrics of plain text do not use it"
    return min(room, _LONGEST_ANSWER_TOKENS), f"the longest reference has {room - 8} tokens"


def _are_texts(layouts: list[str]) -> bool:
    return bool(layouts) and all(layout.startswith("text:") for layout in layouts)


def _metrics_of(rows: list[EvalRow], layouts: list[str]) -> tuple[list[str], str]:
    if any(row.rejected is not None for row in rows):
        metrics, why = _answer_metrics(rows, layouts)
        return [*metrics[:-1], PAIR_METRIC, metrics[-1]], f"{why}, and rows are pairs"
    return _answer_metrics(rows, layouts)


def _answer_metrics(rows: list[EvalRow], layouts: list[str]) -> tuple[list[str], str]:
    if _are_texts(layouts):
        return ["perplexity"], "plain text has no answers to compare"
    if layouts and all(layout.startswith("label") for layout in layouts):
        return _CLASSIFICATION_METRICS, "answers are labels"
    words = sorted(len(row.reference.split()) for row in rows)
    if words[len(words) // 2] <= 8:
        return _SHORT_ANSWER_METRICS, "half of the references have at most 8 words"
    return _LONG_ANSWER_METRICS, "references are sentences"
