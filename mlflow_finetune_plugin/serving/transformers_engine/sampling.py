"""Sample the next token from a row of logits: penalties, temperature, min_p, top_k, top_p, in vLLM's order."""

from __future__ import annotations

from dataclasses import dataclass

import torch

GREEDY_BELOW = 1e-5
"""Temperatures below it mean the likeliest token, as in vLLM."""

_MOST_NEGATIVE = -9999.0  # OpenAI's value for minus infinity, which JSON does not have


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is sampled. ``logprobs`` and ``prompt_logprobs`` are how many likeliest tokens to report with each token."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether the next token is simply the likeliest one of the unchanged logits."""
        return (
            self.temperature < GREEDY_BELOW
            and self.presence_penalty == self.frequency_penalty == 0
            and self.repetition_penalty == 1
        )


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability in nats, and its rank among all tokens; 1 is the likeliest."""

    token_id: int
    logprob: float
    rank: int


def make_generator(seed: int | None, choice: int, device: torch.device) -> torch.Generator:
    """Return a random generator for one answer, so that no other request changes its tokens."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed((seed + choice) % 2**63)
    return generator


def choose(
    logits: torch.Tensor, sampling: SamplingParams, generator: torch.Generator, *, prompt: list[int], answer: list[int]
) -> int:
    """Choose a token from ``logits`` (vocab,), float32 without NaN."""
    logits = _penalised(logits, sampling, prompt, answer)
    if sampling.temperature < GREEDY_BELOW:
        return int(logits.argmax())
    probabilities = _restricted(logits / sampling.temperature, sampling).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _penalised(logits: torch.Tensor, sampling: SamplingParams, prompt: list[int], answer: list[int]) -> torch.Tensor:
    if sampling.repetition_penalty != 1:
        tokens_so_far = torch.tensor(sorted({*prompt, *answer}), device=logits.device)
        rows = logits[tokens_so_far]
        factor = sampling.repetition_penalty
        logits = logits.index_put((tokens_so_far,), torch.where(rows > 0, rows / factor, rows * factor))
    if answer and (sampling.frequency_penalty != 0 or sampling.presence_penalty != 0):
        tokens, counts = torch.tensor(answer, device=logits.device).unique(return_counts=True)
        penalties = counts * sampling.frequency_penalty + sampling.presence_penalty
        logits = logits.index_put((tokens,), logits[tokens] - penalties)
    return logits


def _restricted(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """Set tokens that min_p, top_k and top_p exclude to minus infinity. The likeliest always stays."""
    if sampling.min_p > 0:
        probabilities = logits.softmax(dim=-1)
        logits = logits.masked_fill(probabilities < sampling.min_p * probabilities.max(), -torch.inf)
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        values, order = logits.sort(descending=True)
        before = values.softmax(dim=-1).cumsum(dim=-1) - values.softmax(dim=-1)  # probability of all likelier tokens
        outside = before >= sampling.top_p
        outside[0] = False
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(0, order, outside), -torch.inf)
    return logits


def token_logprobs(logits: torch.Tensor, tokens: list[int], top: int) -> list[list[TokenLogprob]]:
    """Return the log-probabilities for each row of ``logits`` (rows, vocab): its token, then the other ``top`` likeliest."""
    log_probs = logits.float().log_softmax(dim=-1)  # (rows, vocab)
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    values = log_probs.gather(1, chosen)  # (rows, 1)
    ranks = (log_probs > values).sum(dim=-1) + 1
    likeliest = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    rows = zip(
        *(tokens, values[:, 0].tolist(), ranks.tolist(), likeliest.indices.tolist(), likeliest.values.tolist()),
        strict=True,
    )
    return [
        [
            TokenLogprob(token, max(value, _MOST_NEGATIVE), rank),
            *(
                TokenLogprob(other, max(other_value, _MOST_NEGATIVE), top_rank)
                for top_rank, (other, other_value) in enumerate(zip(top_tokens, top_values, strict=True), start=1)
                if other != token
            ),
        ]
        for token, value, rank, top_tokens, top_values in rows
    ]
