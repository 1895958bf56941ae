"""Prove an adapter: base and adapter answer the same held-out rows, and each difference has an interval."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.clusters import group_clusters
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, compare_tasks, load_metrics
from mlflow_finetune_plugin.evaluation.forgetting import text_nats
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, context_length, greedy_answers
from mlflow_finetune_plugin.evaluation.intervals import mean_interval
from mlflow_finetune_plugin.evaluation.results import EvalReport, EvalRow, TextNats

FORGETTING_LENGTH = 1024
"""Longest window of forgetting text, in tokens. It is enough context for prose and fits in memory with any vocabulary."""

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
) -> EvalReport:
    """Compare the adapter with its base, which is the same model with the adapter disabled.

    Rows of several tasks are also compared task by task. The model stays in evaluation mode.

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

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError("there are no held-out rows for the proof; fix: set data.eval to a file or a fraction")
    modules = load_metrics(metrics)
    model.eval()
    sides: dict[str, AnswerSet] = {}
    general: dict[str, np.ndarray] = {}
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
            if forgetting_texts:
                length = min(FORGETTING_LENGTH, context_length(model) or FORGETTING_LENGTH)
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
            _record(row, i, sides) | {name: values[i] for name, values in columns.items()} for i, row in enumerate(rows)
        ),
        texts=_text_nats(general) if general else (),
    )


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
    """Return the model's greedy answers to the prompts and the nats of the reference answers."""
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
    prefix = answer_prefix.strip()
    return AnswerSet(
        answers=[
            tokenizer.decode(answer, skip_special_tokens=True).strip().removeprefix(prefix).strip()
            for answer in answers
        ],
        nats=np.array([-values.sum(dtype=np.float64) for values in log_probs]),
    )


def _text_nats(general: dict[str, np.ndarray]) -> tuple[TextNats, ...]:
    sums = zip(general["base"].tolist(), general["adapter"].tolist(), strict=True)
    return tuple(TextNats(int(tokens), base, adapter) for (base, tokens), (adapter, _) in sums if tokens)


def _record(row: EvalRow, number: int, sides: dict[str, AnswerSet]) -> dict[str, Any]:
    questions = [message["content"] for message in row.messages if message["role"] == "user"]
    record: dict[str, Any] = {
        "task": row.task,
        "source": row.source,
        "line": row.line,
        **({"group": row.group} if row.group is not None else {}),
        "prompt": questions[-1] if questions else "",
        "reference": row.reference,
    }
    for name, side in sides.items():
        record[f"{name}_answer"] = side.answers[number]
        record[f"{name}_nats_per_token"] = float(side.nats[number] / len(row.completion_ids))
    return record
