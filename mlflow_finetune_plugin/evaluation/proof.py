"""The proof: base and adapter answer the same held-out rows, and the difference comes with an interval."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.errors import ConfigError, DataError
from mlflow_finetune_plugin.evaluation.forgetting import text_nats
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, context_length, greedy_answers
from mlflow_finetune_plugin.evaluation.intervals import (
    mean_interval,
    paired_binary_interval,
    paired_bootstrap_interval,
    paired_recompute_interval,
)
from mlflow_finetune_plugin.evaluation.metric_modules import MetricModule, load_metric
from mlflow_finetune_plugin.types import EvalReport, EvalRow, Interval, MetricResult

FORGETTING_LENGTH = 1024
"""Longest window of forgetting text in tokens: enough context for general prose, little enough memory for any vocabulary."""

OnProgress = Callable[[str, int, int], None]
"""Called with "base" or "adapter", answered rows, all rows."""


@dataclass(frozen=True)
class _Side:
    """What one side, base or adapter, gives on the held-out rows."""

    answers: list[str]
    nats: np.ndarray  # (rows,) of the reference answers
    text_nats: np.ndarray | None  # (texts, 2)


def prove(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EvalRow],
    *,
    metrics: Sequence[str],
    max_new_tokens: int,
    stop_token_ids: Collection[int],
    forgetting_texts: Sequence[str],
    answer_prefix: str = "",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> EvalReport:
    """Compare the adapter with its base, which is the same model with the adapter disabled.

    ``answer_prefix`` is what the chat template writes before each answer (an empty think block, say): the model has
    learnt to write it, and it is no part of the answer. ``metrics`` are packaged names or paths of metric files. Without ``forgetting_texts`` the report has no
    forgetting. The model is left in evaluation mode.
    """
    if not rows:
        raise DataError("no held-out rows to prove the adapter on; fix: give an eval file or a split")
    modules = _load_metrics(metrics)
    model.eval()
    sides = {}
    for name in ("base", "adapter"):
        with model.disable_adapter() if name == "base" else nullcontext():
            sides[name] = _measure(
                model,
                tokenizer,
                rows,
                max_new_tokens=max_new_tokens,
                stop_token_ids=stop_token_ids,
                forgetting_texts=forgetting_texts,
                answer_prefix=answer_prefix.strip(),
                on_progress=None if on_progress is None else partial(on_progress, name),
            )
    base, adapter = sides["base"], sides["adapter"]
    compared = [_compare(module, rows, base, adapter, seed) for module in modules]
    forgetting = None
    if base.text_nats is not None and adapter.text_nats is not None:
        forgetting = mean_interval(base.text_nats, adapter.text_nats, seed=seed)
    columns = {name: values for _, row_scores in compared for name, values in row_scores.items()}
    return EvalReport(
        metrics=tuple(result for result, _ in compared),
        forgetting=forgetting,
        rows=tuple(
            _record(row, i, sides) | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)
        ),
    )


def _load_metrics(names: Sequence[str]) -> list[MetricModule]:
    modules = [load_metric(name) for name in names]
    stems = [module.name for module in modules]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ConfigError(
            [f"metric {stem!r} is listed twice; fix: list it once, or rename the metric file" for stem in twice]
        )
    return modules


def _measure(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EvalRow],
    *,
    max_new_tokens: int,
    stop_token_ids: Collection[int],
    forgetting_texts: Sequence[str],
    answer_prefix: str,
    on_progress: Callable[[int, int], None] | None,
) -> _Side:
    pad_token_id = tokenizer.pad_token_id or 0  # padding is masked, any id does
    prompts = [row.prompt_ids for row in rows]
    answers = greedy_answers(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        stop_token_ids=stop_token_ids,
        pad_token_id=pad_token_id,
        on_progress=on_progress,
    )
    log_probs = completion_log_probs(model, prompts, [row.completion_ids for row in rows], pad_token_id=pad_token_id)
    max_length = min(FORGETTING_LENGTH, context_length(model) or FORGETTING_LENGTH)
    return _Side(
        answers=[
            tokenizer.decode(answer, skip_special_tokens=True).strip().removeprefix(answer_prefix).strip()
            for answer in answers
        ],
        nats=np.array([-values.sum(dtype=np.float64) for values in log_probs]),
        text_nats=text_nats(model, tokenizer, forgetting_texts, max_length=max_length) if forgetting_texts else None,
    )


def _record(row: EvalRow, number: int, sides: dict[str, _Side]) -> dict[str, Any]:
    questions = [message["content"] for message in row.messages if message["role"] == "user"]
    record: dict[str, Any] = {
        "task": row.task,
        "source": row.source,
        "line": row.line,
        "prompt": questions[-1] if questions else "",
        "reference": row.reference,
    }
    for name, side in sides.items():
        record[f"{name}_answer"] = side.answers[number]
        record[f"{name}_nats_per_token"] = float(side.nats[number] / len(row.completion_ids))
    return record


def _compare(
    module: MetricModule, rows: Sequence[EvalRow], base: _Side, adapter: _Side, seed: int
) -> tuple[MetricResult, dict[str, list[float]]]:
    """The metric's result, and its score per row and side where one row alone has a score."""
    references: list[Any] = [row.reference for row in rows]
    base_predictions: list[Any] = base.answers
    adapter_predictions: list[Any] = adapter.answers
    if module.reads_likelihoods:
        references = [float(len(row.completion_ids)) for row in rows]
        base_predictions, adapter_predictions = base.nats.tolist(), adapter.nats.tolist()
    row_scores: dict[str, list[float]] = {}
    if module.has_row_statistics:
        base_statistics = module.row_statistics(base_predictions, references)  # (rows, k)
        adapter_statistics = module.row_statistics(adapter_predictions, references)  # (rows, k)
        base_value = float(module.score(base_statistics.sum(axis=0)))
        adapter_value = float(module.score(adapter_statistics.sum(axis=0)))
        if module.is_binary:
            gain = paired_binary_interval(module.score(base_statistics), module.score(adapter_statistics))
        else:
            gain = paired_bootstrap_interval(
                base_statistics, adapter_statistics, module.score, module.higher_is_better, seed
            )
        if module.scores_single_rows:
            row_scores[f"base_{module.name}"] = module.score(base_statistics).tolist()
            row_scores[f"adapter_{module.name}"] = module.score(adapter_statistics).tolist()
    else:
        base_value = module.compute(base_predictions, references)
        adapter_value = module.compute(adapter_predictions, references)
        gain = _recomputed_gain(module, base_predictions, adapter_predictions, references, seed)
    result = MetricResult(
        name=module.name,
        base=base_value,
        adapter=adapter_value,
        gain=gain,
        higher_is_better=module.higher_is_better,
        rows=len(rows),
    )
    return result, row_scores


def _recomputed_gain(
    module: MetricModule, base: list[Any], adapter: list[Any], references: list[Any], seed: int
) -> Interval:
    sign = 1.0 if module.higher_is_better else -1.0

    def value(side: list[Any], rows: np.ndarray) -> float:
        return module.compute([side[i] for i in rows], [references[i] for i in rows])

    return paired_recompute_interval(
        lambda rows: sign * (value(adapter, rows) - value(base, rows)), len(references), seed
    )
