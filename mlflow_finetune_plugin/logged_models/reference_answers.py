"""A few greedy answers of an adapter with their text, for the certificate of serving.

Log-probabilities show that an engine computes as training did. They do not show that it decodes an answer as the proof does, or ends
it at the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.evaluation.answer_text import decoded_answer
from mlflow_finetune_plugin.evaluation.generation import context_length, greedy_answers, margins
from mlflow_finetune_plugin.evaluation.results import EvalRow

_MOST_ANSWERS = 4
_MOST_TOKENS = 32


@dataclass(frozen=True)
class Decoding:
    """How the tokens of an answer become text.

    Attributes:
        stop_token_ids: Tokens that end an answer.
        answer_prefix: What the chat template writes before each answer.
        max_new_tokens: Most tokens of an answer in the proof; a reference answer has at most 32.
    """

    tokenizer: PreTrainedTokenizerBase
    stop_token_ids: Sequence[int]
    answer_prefix: str
    max_new_tokens: int


def reference_answers(model: torch.nn.Module, rows: Sequence[EvalRow], decoding: Decoding) -> list[dict[str, Any]]:
    """Return the greedy answers to the first four rows that are chats.

    Returns:
        For each answer: ``probe``, the number of its row; ``ids``, its tokens with the stop token; ``texts``, the text up to each token;
        and ``margins``, how many nats each token was likelier than the second best.
    """
    limit, context = min(_MOST_TOKENS, decoding.max_new_tokens), context_length(model)
    chats = [
        number
        for number, row in enumerate(rows)
        if row.messages and (context is None or len(row.prompt_ids) + limit < context)
    ][:_MOST_ANSWERS]
    prompts = [rows[number].prompt_ids for number in chats]
    answers = greedy_answers(
        model,
        prompts,
        max_new_tokens=limit,
        stop_token_ids=decoding.stop_token_ids,
        pad_token_id=int(decoding.tokenizer.pad_token_id or 0),
    )
    return [
        {"probe": number, **_answer(model, prompt, answer, decoding, has_ended=len(answer) < limit)}
        for number, prompt, answer in zip(chats, prompts, answers, strict=True)
    ]


def _answer(
    model: torch.nn.Module, prompt: Sequence[int], answer: list[int], decoding: Decoding, *, has_ended: bool
) -> dict[str, Any]:
    nats, next_token = margins(model, prompt, answer)
    ids = [*answer, next_token] if has_ended and next_token in decoding.stop_token_ids else answer
    ends = [min(end, len(answer)) for end in range(1, len(ids) + 1)]  # a stop token has no text
    texts = [decoded_answer(decoding.tokenizer, answer[:end], decoding.answer_prefix) for end in ends]
    return {"ids": ids, "texts": texts, "margins": nats[: len(ids)]}
