"""Generate greedy answers and score reference answers in batches, with the same results as one row at a time.

Rows are sorted by length, so that a batch has little padding, and results are in the caller's order. Generation pads on
the left, because answers continue on the right. Scoring pads on the right, where causal attention never reads, so that no
model needs position ids. Prompts are given without virtual tokens, and read after those that the model has.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, PreTrainedModel

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.virtual_tokens import virtual_token_ids, with_virtual_tokens
from mlflow_finetune_plugin.images.prompts import picture_tensors

logger = logging.getLogger(__name__)

DEFAULT_BATCH_TOKENS = 16384
"""Tokens of a batch including padding. With 8B parameters and grouped-query attention this is about 2 GiB of key-value cache."""

_LOGITS_PER_BATCH = 2**28
"""Most logits in memory at once: 1 GiB in float32. A single row may need more."""


@torch.inference_mode()
def greedy_answers(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_token_ids: Collection[int],
    pad_token_id: int,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Generate the most likely answer to each prompt, without the first stop token and what follows it.

    The sampling and penalties of the model's own generation config do not apply. An answer ends where the model's context
    ends, as on a server; a warning reports the rows that have room for fewer than ``max_new_tokens``.
    ``on_progress(done, total)`` is called after each batch.

    Raises:
        FinetuneError: a prompt is empty or fills the whole context. No answer was generated then.
    """
    room = _room_for_answers(model, prompts, max_new_tokens)
    shown, prompts = prompts, with_virtual_tokens(model, prompts)
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        eos_token_id=sorted(stop_token_ids) or None,
        pad_token_id=pad_token_id,
    )
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    with default_generation_config(model), _without_router_loss(model):
        for rows in _answer_batches(prompts, room, batch_tokens, may_pad=not _soft_prompt_tokens(model)):
            settings.max_new_tokens = room[rows[0]]
            ids, mask = _padded([prompts[row] for row in rows], pad_token_id, side="left")  # (batch, seq)
            more = _on_device(model, picture_tensors([shown[row] for row in rows], ids))
            output = model.generate(
                input_ids=ids.to(_device(model)),
                attention_mask=mask.to(_device(model)),
                generation_config=settings,
                **more,
            )
            for row, tokens in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
                answers[row] = until_stop(tokens, stop_token_ids)
            done += len(rows)
            if on_progress is not None:
                on_progress(done, len(prompts))
    return answers


@torch.inference_mode()
def completion_log_probs(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad_token_id: int,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> list[np.ndarray]:
    """Return the log-probability of each completion token given the tokens before it, in nats, float32 per row.

    Logits are computed only for the columns that a completion of the batch needs, and converted to float32
    log-probabilities one row at a time, so that (batch, seq, vocab) never exists in float32.
    """
    context = context_length(model)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        if not prompt:
            raise FinetuneError(
                f"row {row} has an empty prompt, so nothing predicts its first token; fix: start the prompt with BOS"
            )
        if context is not None and len(prompt) + len(completion) > context:
            raise FinetuneError(
                f"row {row} has {len(prompt)} prompt and {len(completion)} completion tokens, more than the model's context "
                f"of {context}; fix: shorten the row"
            )
    shown, prompts = prompts, with_virtual_tokens(model, prompts)
    results: list[np.ndarray] = [np.empty(0, dtype=np.float32) for _ in prompts]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    for rows in _scoring_batches(prompts, completions, batch_tokens, _LOGITS_PER_BATCH // vocabulary):
        ids, mask = _padded([[*prompts[row], *completions[row]] for row in rows], pad_token_id, side="right")
        first = min(len(prompts[row]) for row in rows) - 1  # the column whose logits predict the first completion token
        more = _on_device(model, picture_tensors([shown[row] for row in rows], ids))
        logits = _last_logits(model, ids, mask, keep=ids.shape[1] - first, **more)  # (batch, seq - first, vocab)
        for logits_of_row, row in zip(logits, rows, strict=True):
            start = len(prompts[row]) - 1 - first
            targets = torch.tensor(completions[row], dtype=torch.long, device=logits.device)
            log_probs = logits_of_row[start : start + len(targets)].float().log_softmax(dim=-1)  # (completion, vocab)
            results[row] = log_probs.gather(1, targets[:, None])[:, 0].cpu().numpy()
    return results


@torch.inference_mode()
def margins(model: torch.nn.Module, prompt: Sequence[int], answer: Sequence[int]) -> tuple[list[float], int]:
    """Return how many nats each token of an answer, and the likeliest one after it, was likelier than the best other token.

    Returns:
        One number for each token of the answer and one more, negative where another token was likelier; and the likeliest token
        after the answer.
    """
    ids, mask = _padded(with_virtual_tokens(model, [[*prompt, *answer]]), 0, side="right")
    more = _on_device(model, picture_tensors([prompt], ids))
    logits = _last_logits(model, ids, mask, keep=len(answer) + 1, **more)[0].float()  # (answer + 1, vocab)
    next_token = int(logits[-1].argmax())
    chosen = torch.tensor([*answer, next_token], device=logits.device)[:, None]
    others = logits.scatter(1, chosen, -torch.inf).amax(dim=1)
    return (logits.gather(1, chosen)[:, 0] - others).tolist(), next_token


def context_length(model: torch.nn.Module) -> int | None:
    """Return how many tokens prompt and answer may have together, after the model's virtual tokens; None where the architecture
    has no limit.
    """
    limit = getattr(_transformer(model).config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit) - _soft_prompt_tokens(model) - len(virtual_token_ids(model))


def _room_for_answers(model: torch.nn.Module, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[int]:
    """Return how many new tokens each row may have."""
    if max_new_tokens < 1:
        raise FinetuneError(f"max_new_tokens is {max_new_tokens}; fix: use at least 1")
    context = context_length(model)
    room = []
    for row, prompt in enumerate(prompts):
        if not prompt:
            raise FinetuneError(f"row {row} has an empty prompt; fix: write at least one token")
        if context is not None and len(prompt) >= context:
            raise FinetuneError(
                f"row {row}: a prompt of {len(prompt)} tokens leaves no room for an answer in the model's context of "
                f"{context}; fix: shorten or remove the row"
            )
        room.append(max_new_tokens if context is None else min(max_new_tokens, context - len(prompt)))
    capped = [tokens for tokens in room if tokens < max_new_tokens]
    if capped:
        logger.warning(
            "%d of %d prompts leave room for fewer than max_new_tokens=%d in the model's context of %d (the longest leaves %d), "
            "so their answers may be cut off; fix: shorten the prompts or lower max_new_tokens",
            *(len(capped), len(prompts), max_new_tokens, context, min(capped)),
        )
    return room


def _answer_batches(
    prompts: Sequence[Sequence[int]], room: Sequence[int], batch_tokens: int, *, may_pad: bool
) -> Iterator[list[int]]:
    """Yield the row numbers of each batch, longest first, so that a batch that is too big fails early. Rows of a batch have equal room."""
    batch: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
        if batch:
            length = len(prompts[batch[0]])
            is_mixed = room[row] != room[batch[0]] or (not may_pad and len(prompts[row]) != length)
            if is_mixed or (len(batch) + 1) * (length + room[batch[0]]) > batch_tokens:
                yield batch
                batch = []
        batch.append(row)
    if batch:
        yield batch


def _scoring_batches(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], batch_tokens: int, batch_logit_columns: int
) -> Iterator[list[int]]:
    """Yield the row numbers of each batch, longest prompts first, within the limits of tokens and of logit columns."""
    batch: list[int] = []
    width = 0
    for row in sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), -len(completions[row]))):
        new_width = max(width, len(prompts[row]) + len(completions[row]))
        size = len(batch) + 1
        if batch and (
            size * new_width > batch_tokens or size * (new_width - len(prompts[row]) + 1) > batch_logit_columns
        ):
            yield batch
            batch, new_width = [], len(prompts[row]) + len(completions[row])
        batch.append(row)
        width = new_width
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], pad_token_id: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad_token_id, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
    return ids, mask


def _last_logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, keep: int, **more: Any) -> torch.Tensor:
    """Return the logits of the last ``keep`` columns. Architectures without ``logits_to_keep`` compute all of them first."""
    transformer = _transformer(model)
    options = {"logits_to_keep": keep} if "logits_to_keep" in inspect.signature(transformer.forward).parameters else {}
    inputs = {"input_ids": ids.to(_device(model)), "attention_mask": mask.to(_device(model)), **more, **options}
    output = model(**inputs, use_cache=False)
    return output.logits[:, -keep:]


def until_stop(tokens: list[int], stop_token_ids: Collection[int]) -> list[int]:
    """Return the tokens before the first stop token."""
    return next((tokens[:i] for i, token in enumerate(tokens) if token in stop_token_ids), tokens)


def _device(model: torch.nn.Module) -> torch.device:
    """Return the device of the input ids, also for a model that is spread over several devices."""
    return model.get_input_embeddings().weight.device


def _on_device(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a model's further inputs where it is, pixels in its precision."""
    dtype = next(model.parameters()).dtype if inputs else torch.float32
    return {
        name: value.to(_device(model), dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _transformer(model: torch.nn.Module) -> PreTrainedModel:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _soft_prompt_tokens(model: torch.nn.Module) -> int:
    """Return how many tokens PEFT's own prompt learning, of another package's adaptation, puts before a row.

    PEFT gives padding after them wrong positions.
    """
    config = getattr(model, "active_peft_config", None)
    return config.num_virtual_tokens if config is not None and config.is_prompt_learning else 0


@contextmanager
def default_generation_config(model: torch.nn.Module) -> Iterator[None]:
    """Replace the model's generation config meanwhile, because ``generate`` takes from it what its argument leaves open."""
    transformer = _transformer(model)
    previous = transformer.generation_config
    transformer.generation_config = GenerationConfig()
    try:
        yield
    finally:
        transformer.generation_config = previous


@contextmanager
def _without_router_loss(model: torch.nn.Module) -> Iterator[None]:
    """Turn off the loss of a mixture's routers, which TRL turns on for training. It fails in a step that has keys in a cache."""
    config = _transformer(model).config
    previous = getattr(config, "output_router_logits", None)
    if previous is not None:
        config.output_router_logits = False
    try:
        yield
    finally:
        if previous is not None:
            config.output_router_logits = previous
