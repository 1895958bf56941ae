"""Prove a reward model on held-out pairs: how often it rewards the better answer, beside rules that read only the lengths.

An untrained score head says nothing, so the base is not a side of this comparison. The other side is the better of two rules:
the longer answer wins, or the shorter one does. Ties are decided by turns, so that side is right in half of the pairs or more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from mlflow_finetune_plugin.errors import DataError, FinetuneError
from mlflow_finetune_plugin.evaluation.clusters import clusters_of
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, compare_tasks, load_metrics
from mlflow_finetune_plugin.evaluation.generation import DEFAULT_BATCH_TOKENS, context_length
from mlflow_finetune_plugin.evaluation.intervals import paired_bootstrap_interval, widest
from mlflow_finetune_plugin.evaluation.results import (
    CalibrationBucket,
    EvalReport,
    EvalRow,
    Interval,
    RewardFigures,
)
from mlflow_finetune_plugin.evaluation.virtual_tokens import with_virtual_tokens
from mlflow_finetune_plugin.internals.transformers import last_rewards, score_head

_EDGES = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


def is_reward_model(model: torch.nn.Module) -> bool:
    """Return whether a model gives rewards instead of answers."""
    return score_head(_transformer(model)) is not None


@torch.inference_mode()
def rewards_of(
    model: torch.nn.Module,
    conversations: Sequence[Sequence[int]],
    *,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Return the reward of each conversation, float64, (conversations,), in the caller's order.

    Args:
        model: The reward model.
        conversations: Token ids, each up to the end of the last answer's turn.
        batch_tokens: Tokens of a batch, padding included.
        on_progress: Called after each batch with the conversations that are done and all of them.

    Raises:
        FinetuneError: A conversation is longer than the model's context.
    """
    context = context_length(model)
    for row, ids in enumerate(conversations):
        if context is not None and len(ids) > context:
            raise FinetuneError(
                f"conversation {row} has {len(ids)} tokens, more than the model's context of {context}; fix: shorten it"
            )
    conversations = with_virtual_tokens(model, conversations)
    rewards = np.zeros(len(conversations))
    done = 0
    for rows in _batches([len(ids) for ids in conversations], batch_tokens):
        rewards[rows] = _of_batch(_transformer(model), [conversations[row] for row in rows])
        done += len(rows)
        if on_progress is not None:
            on_progress(done, len(conversations))
    return rewards


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):  # the first of a batch is its longest
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _of_batch(model: Any, conversations: Sequence[Sequence[int]]) -> np.ndarray:
    device = model.get_input_embeddings().weight.device
    tensors = [torch.tensor(ids, dtype=torch.long) for ids in conversations]
    ids = pad_sequence(tensors, batch_first=True).to(device)  # (batch, seq), padded on the right, which no token reads
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in tensors], device=device)
    last = torch.arange(len(tensors), device=device) * ids.shape[1] + lengths - 1
    return last_rewards(model, {"input_ids": ids, "attention_mask": mask}, last).double().cpu().numpy()


def measure_rewards(
    model: torch.nn.Module, rows: Sequence[EvalRow], on_progress: Callable[[int, int], None] | None = None
) -> AnswerSet:
    """Return the rewards of the pairs as an ``AnswerSet``, whose metrics read how much higher the better answer's is.

    Raises:
        DataError: a row is not a pair.
    """
    if any(row.rejected is None for row in rows):
        raise DataError("a reward model is proven on pairs, and not every held-out row is one; fix: hold out pairs")
    better = [[*row.prompt_ids, *row.completion_ids] for row in rows]
    worse = [[*row.prompt_ids, *row.rejected_ids] for row in rows]
    rewards = rewards_of(model, [*better, *worse], on_progress=on_progress)
    return AnswerSet.of_rewards(rewards[: len(rows)], rewards[len(rows) :])


def length_rule(rows: Sequence[EvalRow]) -> tuple[AnswerSet, str]:
    """Return the better of both rules of length on these pairs, and its words. Lengths are in tokens."""
    better = np.array([len(row.completion_ids) for row in rows], dtype=float)
    worse = np.array([len(row.rejected_ids) for row in rows], dtype=float)
    longer = better - worse
    sign, words = (1.0, "the longer answer wins") if (longer > 0).sum() >= (longer < 0).sum() else (-1.0, "")
    words = words or "the shorter answer wins"
    ties = np.cumsum(longer == 0)
    better = sign * better + np.where((longer == 0) & (ties % 2 == 1), 0.5, 0.0)
    return AnswerSet.of_rewards(better, sign * worse), f"the rule '{words}'"


def prove_rewards(
    model: torch.nn.Module,
    rows: Sequence[EvalRow],
    *,
    metrics: Sequence[str],
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> EvalReport:
    """Compare a reward model with the rule of length on held-out pairs. Forgetting does not exist: it writes no text.

    Args:
        model: The reward model.
        rows: The held-out pairs.
        metrics: Metrics of pairs, the first one decides.
        seed: Seed of the bootstrap.
        on_progress: Called after each batch with "adapter", the answers that are rewarded, and all of them.

    Raises:
        DataError: there are no rows, or a row is not a pair.
    """
    if not rows:
        raise DataError("there are no held-out pairs for the proof; fix: set data.eval to a file or a fraction")
    model.eval()
    report = None if on_progress is None else (lambda done, total: on_progress("adapter", done, total))
    adapter = measure_rewards(model, rows, report)
    rule, words = length_rule(rows)
    clusters = clusters_of(rows)
    modules = load_metrics(metrics)
    compared = [compare(module, rows, rule, adapter, seed, clusters) for module in modules]
    columns = {name: values for _, row_scores in compared for name, values in row_scores.items()}
    return EvalReport(
        metrics=tuple(result for result, _ in compared),
        forgetting=None,
        rows=tuple(
            _record(row, i, rule, adapter) | {name: values[i] for name, values in columns.items()}
            for i, row in enumerate(rows)
        ),
        tasks=compare_tasks(modules, rows, rule, adapter, seed),
        over=words,
        rewards=reward_figures(rows, adapter, seed),
    )


def reward_figures(rows: Sequence[EvalRow], rewards: AnswerSet, seed: int) -> RewardFigures:
    """Return what the rewards of the pairs show beside their accuracy."""
    assert rewards.rejected_nats is not None
    better, worse = -rewards.nats, -rewards.rejected_nats
    margins = better - worse
    tokens = [len(row.completion_ids) for row in rows] + [len(row.rejected_ids) for row in rows]
    lengths, every = np.array(tokens, dtype=float), np.concatenate([better, worse])
    varies = min(np.ptp(lengths), np.ptp(every)) > 0
    buckets = _buckets(margins)
    return RewardFigures(
        accuracy=_accuracy(rows, margins > 0, seed),
        margin=float(margins.mean()),
        mean=float(every.mean()),
        deviation=float(every.std()),
        calibration_error=sum(b.pairs * abs(b.right - b.expected) for b in buckets) / len(rows),
        length_correlation=float(np.corrcoef(lengths, every)[0, 1]) if varies else None,
        longer_wins=float(np.mean([len(row.completion_ids) > len(row.rejected_ids) for row in rows])),
        calibration=buckets,
    )


def _accuracy(rows: Sequence[EvalRow], right: np.ndarray, seed: int) -> Interval:
    from scipy.stats import binomtest  # here, because a training imports this module long before its proof

    found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    interval = Interval(float(right.mean()), float(found.low), float(found.high), "Wilson 1927")
    clusters = clusters_of(rows)
    if clusters is None:
        return interval
    names = list(dict.fromkeys(clusters))
    sums = np.zeros((len(names), 2))
    np.add.at(sums, [names.index(cluster) for cluster in clusters], np.stack([right, np.ones(len(right))], axis=1))
    nothing = sums * [0.0, 1.0]
    drawn = paired_bootstrap_interval(nothing, sums, lambda s: s[..., 0] / s[..., 1], True, seed)
    return widest(interval, drawn)


def _buckets(margins: np.ndarray) -> tuple[CalibrationBucket, ...]:
    """Group pairs by the chance with which the model says that the answer it rewards more is the better one."""
    sure = 1 / (1 + np.exp(-np.abs(margins)))
    at = np.clip(np.searchsorted(_EDGES, sure, side="right") - 1, 0, len(_EDGES) - 2)
    return tuple(
        CalibrationBucket(
            low=float(_EDGES[bucket]),
            high=float(_EDGES[bucket + 1]),
            pairs=int((at == bucket).sum()),
            expected=float(sure[at == bucket].mean()),
            right=float((margins[at == bucket] > 0).mean()),
        )
        for bucket in range(len(_EDGES) - 1)
        if (at == bucket).any()
    )


def _record(row: EvalRow, number: int, rule: AnswerSet, adapter: AnswerSet) -> dict[str, Any]:
    questions = [message["content"] for message in row.messages if message["role"] == "user"]
    record: dict[str, Any] = {
        "task": row.task,
        "source": row.source,
        "line": row.line,
        **({"group": row.group} if row.group is not None else {}),
        "prompt": questions[-1] if questions else "",
        "reference": row.reference,
        "rejected": row.rejected,
    }
    for name, side in (("base", rule), ("adapter", adapter)):
        assert side.rejected_nats is not None
        record |= {f"{name}_reward": -float(side.nats[number])}
        record |= {f"{name}_rejected_reward": -float(side.rejected_nats[number])}
    return record


def _transformer(model: torch.nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
