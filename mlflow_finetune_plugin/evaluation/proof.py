"""Prove an adapter: base and adapter answer the same held-out rows, and each difference has an interval."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.answer_text import decoded_answer
from mlflow_finetune_plugin.evaluation.clusters import group_clusters
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, check_pairs, compare, compare_tasks, load_metrics
from mlflow_finetune_plugin.evaluation.forgetting import text_nats
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, context_length, greedy_answers
from mlflow_finetune_plugin.evaluation.intervals import mean_interval
from mlflow_finetune_plugin.evaluation.metric_modules import is_reward
from mlflow_finetune_plugin.evaluation.results import (
    AnswerLengths,
    EvalReport,
    EvalRow,
    MetricResult,
    TextNats,
    has_reference,
)
from mlflow_finetune_plugin.evaluation.rewards import is_reward_model, measure_rewards, prove_rewards
from mlflow_finetune_plugin.images.turns import MARK

FORGETTING_LENGTH = 1024
"""Longest window of forgetting text, in tokens. It is enough context for prose and fits in memory with any vocabulary."""

ScoreAnswers = Callable[[Sequence[EvalRow], Sequence[str]], Mapping[str, np.ndarray]]
"""Returns the rewards of answers by metric name, (rows,) each, NaN where one is missing."""

OnProgress = Callable[[str, int, int], None]
"""Called with "base" or "adapter", the number of answered rows, and the number of all rows."""


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
    score_answers: ScoreAnswers | None = None,
) -> EvalReport:
    """Compare the adapter with its base, which is the same model with the adapter disabled.

    Rows of several tasks are also compared task by task. The model stays in evaluation mode. A reward model writes no answers:
    it is compared with a rule of length (``prove_rewards``).

    Args:
        model: The adapter on its base.
        tokenizer: The base's tokenizer.
        rows: The held-out rows.
        metrics: Packaged names or paths of metric files.
        max_new_tokens: Most tokens of an answer.
        stop_token_ids: Tokens that end an answer.
        forgetting_texts: General texts; without them the report has no forgetting.
        answer_prefix: What the chat template writes before each answer, such as an empty think block. It is removed from
            the answers, because the model learns to write it and it is not part of the answer.
        seed: Seed of the bootstrap.
        on_progress: Called after each batch of answers.
        score_answers: Scores the answers, for the metrics ``reward`` and ``reward/NAME``.

    Raises:
        DataError: there are no rows.
    """
    if is_reward_model(model):
        return prove_rewards(model, rows, metrics=metrics, seed=seed, on_progress=on_progress)
    if not rows:
        raise DataError("there are no held-out rows for the proof; fix: set data.eval to a file or a fraction")
    modules = load_metrics(metrics)
    check_pairs(modules, rows)
    model.eval()
    sides: dict[str, AnswerSet] = {}
    general: dict[str, np.ndarray] = {}
    length = min(FORGETTING_LENGTH, context_length(model) or FORGETTING_LENGTH)  # the same windows for both sides
    for name in ("base", "adapter"):
        # One model in memory serves both sides, so precision and kernels cannot differ between them.
        with model.disable_adapter() if name == "base" else nullcontext():
            sides[name] = measure(
                model,
                tokenizer,
                rows,
                max_new_tokens=max_new_tokens,
                stop_token_ids=stop_token_ids,
                answer_prefix=answer_prefix,
                on_progress=None if on_progress is None else partial(on_progress, name),
            )
            if score_answers is not None:
                sides[name] = replace(sides[name], rewards=score_answers(rows, sides[name].answers))
            if forgetting_texts:
                general[name] = text_nats(model, tokenizer, forgetting_texts, max_length=length)
    base, adapter = sides["base"], sides["adapter"]
    clusters = group_clusters(rows)
    compared = [compare(module, rows, base, adapter, seed, clusters) for module in modules]
    columns = {name: values for _, row_scores in compared for name, values in row_scores.items()}
    return EvalReport(
        metrics=tuple(result for result, _ in compared),
        tasks=compare_tasks(modules, rows, base, adapter, seed),
        forgetting=mean_interval(general["base"], general["adapter"], seed=seed) if general else None,
        rows=tuple(
            _record(row, i, sides) | {name: _score(values[i]) for name, values in columns.items()}
            for i, row in enumerate(rows)
        ),
        texts=_text_nats(general) if general else (),
        kl=None if score_answers is None else _kl(model, tokenizer, rows, adapter.answer_ids),
        lengths=AnswerLengths(base.mean_tokens, adapter.mean_tokens),
    )


def gain_over(
    proof: EvalReport, rows: Sequence[EvalRow], other: AnswerSet, *, metrics: Sequence[str], seed: int
) -> tuple[MetricResult, ...]:
    """Compare the proven adapter with another one that answered the same rows.

    Args:
        proof: The proof of the adapter.
        rows: The rows of ``proof`` in their order.
        other: The other adapter's answers to them.
        metrics: Packaged names or paths of metric files.
        seed: Seed of the bootstrap.

    Returns:
        One result for each metric, with the other adapter as ``base``.
    """
    clusters, adapter = group_clusters(rows), adapter_answers(proof, rows)
    return tuple(compare(module, rows, other, adapter, seed, clusters)[0] for module in load_metrics(metrics))


def adapter_answers(proof: EvalReport, rows: Sequence[EvalRow]) -> AnswerSet:
    """Return what the proven adapter answered. ``rows`` are those of the proof in their order."""
    nats = [
        (r["adapter_nats_per_token"] or 0.0) * len(row.completion_ids) for r, row in zip(proof.rows, rows, strict=True)
    ]
    rejected = [
        r.get("adapter_rejected_nats_per_token", np.nan) * len(row.rejected_ids)
        for r, row in zip(proof.rows, rows, strict=True)
    ]
    rejected_nats = None if np.isnan(rejected).all() else np.array(rejected)
    answers = [str(record["adapter_answer"]) for record in proof.rows]
    return AnswerSet(answers, np.array(nats), rejected_nats, _recorded_rewards(proof))


def _recorded_rewards(proof: EvalReport) -> dict[str, np.ndarray]:
    """Return the rewards of the adapter's answers by metric; NaN where a part did not apply to one of both sides."""
    names = [metric.name for metric in proof.metrics if is_reward(metric.name)]
    return {name: np.array([row[f"adapter_{name}"] for row in proof.rows], dtype=np.float64) for name in names}


def measure(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EvalRow],
    *,
    max_new_tokens: int,
    stop_token_ids: Collection[int],
    answer_prefix: str,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnswerSet:
    """Return the model's greedy answers to the prompts and the nats of the reference answers; of a reward model its rewards."""
    if is_reward_model(model):
        return measure_rewards(model, rows, on_progress)
    pad_token_id = tokenizer.pad_token_id or 0  # padding is masked, so any id works
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
    pairs = [i for i, row in enumerate(rows) if row.rejected is not None]
    rejected = None
    if pairs:
        rejected = np.full(len(rows), np.nan)
        of_pairs = completion_log_probs(
            model, [prompts[i] for i in pairs], [rows[i].rejected_ids for i in pairs], pad_token_id=pad_token_id
        )
        rejected[pairs] = [-values.sum(dtype=np.float64) for values in of_pairs]
    return AnswerSet(
        answers=[decoded_answer(tokenizer, answer, answer_prefix) for answer in answers],
        nats=np.array([-values.sum(dtype=np.float64) for values in log_probs]),
        rejected_nats=rejected,
        answer_ids=answers,
    )


def _kl(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EvalRow], answers: Sequence[Sequence[int]]
) -> float | None:
    """Return by how many nats per token the adapter's answers are likelier than under the base; None if all are empty."""
    score = partial(
        completion_log_probs, model, [row.prompt_ids for row in rows], answers, pad_token_id=tokenizer.pad_token_id or 0
    )
    adapter = np.concatenate(score())
    with model.disable_adapter():
        base = np.concatenate(score())
    return float((adapter - base).mean(dtype=np.float64)) if len(adapter) else None


def _text_nats(general: dict[str, np.ndarray]) -> tuple[TextNats, ...]:
    sums = zip(general["base"].tolist(), general["adapter"].tolist(), strict=True)
    return tuple(TextNats(int(tokens), base, adapter) for (base, tokens), (adapter, _) in sums if tokens)


def _score(value: float) -> float | None:
    """Return a row's score as JSON can hold it: None where it is missing."""
    return None if np.isnan(value) else value


def _record(row: EvalRow, number: int, sides: dict[str, AnswerSet]) -> dict[str, Any]:
    questions = [message["content"] for message in row.messages if message["role"] == "user"]
    record: dict[str, Any] = {
        "task": row.task,
        "source": row.source,
        "line": row.line,
        **({"group": row.group} if row.group is not None else {}),
        "prompt": questions[-1].replace(MARK, "[picture]") if questions else "",
        "reference": row.reference,
        **({"rejected": row.rejected} if row.rejected is not None else {}),
    }
    for name, side in sides.items():
        record[f"{name}_answer"] = side.answers[number]
        nats = float(side.nats[number] / len(row.completion_ids))
        record[f"{name}_nats_per_token"] = nats if has_reference(row) else None
        if side.rejected_nats is not None and row.rejected is not None:
            record[f"{name}_rejected_nats_per_token"] = float(side.rejected_nats[number] / len(row.rejected_ids))
    return record
