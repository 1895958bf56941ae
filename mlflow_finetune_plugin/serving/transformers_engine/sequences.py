"""The sequences that are being decoded, alone and in groups."""

from __future__ import annotations

from collections.abc import Sequence as Listing
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mlflow_finetune_plugin.serving.transformers_engine.prompts import NO_PICTURES, ShownPictures
from mlflow_finetune_plugin.serving.transformers_engine.sampling import (
    SamplingParams,
    TokenLogprob,
    choose,
    make_generator,
    token_logprobs,
)
from mlflow_finetune_plugin.serving.transformers_engine.text import Detokenizer, StopTexts
from mlflow_finetune_plugin.serving.transformers_engine.trees import Tree

_LOGITS_AT_ONCE = 2**28
"""The logits in memory at once while a prompt's log-probabilities are computed: 1 GiB in float32."""


@dataclass
class Update:
    """The part of an answer that one step added. The last update has a ``finish_reason`` or an ``error``."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    prompt_logprobs: list[list[TokenLogprob] | None] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


def joined(updates: Listing[Update]) -> Update:
    """Join all updates of an answer."""
    return Update(
        text="".join(update.text for update in updates),
        token_ids=[token for update in updates for token in update.token_ids],
        logprobs=[tokens for update in updates for tokens in update.logprobs],
        prompt_logprobs=updates[0].prompt_logprobs,
        finish_reason=updates[-1].finish_reason,
        stop_reason=updates[-1].stop_reason,
        error=updates[-1].error,
    )


@dataclass(frozen=True)
class PromptPass:
    """What a pass over a prompt computed: the logits (vocab,) of the first token, the cache, and the prompt's log-probabilities.

    ``position_shift`` is that of ``trees.Start``.
    """

    logits: torch.Tensor
    cache: DynamicCache
    position_shift: int = 0
    logprobs: list[list[TokenLogprob] | None] | None = None


class Sequence:
    """A prompt and its answer so far. It holds its tree, so that unloading the adapter does not end it.

    Args:
        tree: The base, or the base with an adapter.
        prompt: Token ids.
        sampling: How to sample the answer.
        tokenizer: Turns the answer's tokens into text.
        stop_token_ids: Tokens that end the answer.
        choice: The number of this answer among those of its request; it changes the seed.
        pictures: What the model reads beside the tokens.
        is_streamed: True sends every update; False sends one at the end, which saves work in the event loop.
    """

    def __init__(
        self,
        tree: Tree,
        prompt: list[int],
        sampling: SamplingParams,
        *,
        tokenizer: Any,
        stop_token_ids: frozenset[int],
        choice: int = 0,
        pictures: ShownPictures = NO_PICTURES,
        is_streamed: bool = True,
    ) -> None:
        self.tree, self.prompt, self.sampling = tree, prompt, sampling
        self.position_shift = 0
        self.pictures = pictures
        self.answer: list[int] = []
        self.is_cancelled = False
        self._is_streamed = is_streamed
        self._pending: list[Update] = []
        self._ends = frozenset() if sampling.ignore_eos else stop_token_ids
        self._generator = make_generator(sampling.seed, choice, tree.device)
        self._text = Detokenizer(tokenizer, prompt, skip_special_tokens=sampling.skip_special_tokens)
        self._stops = StopTexts(sampling.stop)

    @property
    def length(self) -> int:
        """The number of tokens in the cache: all but the answer's last one, which the next step reads."""
        return self.tree.virtual_tokens + len(self.prompt) + len(self.answer) - 1

    def due_update(self, update: Update) -> Update | None:
        """Return the update to send now, or None."""
        if self._is_streamed:
            return update
        self._pending.append(update)
        return joined(self._pending) if update.is_last else None

    def shares_prompt(self, other: Sequence) -> bool:
        """Return whether one pass over the prompt serves both: the same tokens, pictures and weights, and no log-probabilities of them.

        All pictures of a size have the same tokens, so the tokens alone do not tell.
        """
        is_plain = self.sampling.prompt_logprobs is None and other.sampling.prompt_logprobs is None
        is_same = self.prompt == other.prompt and self.pictures == other.pictures
        return is_plain and self.tree is other.tree and is_same

    def begin(self, read: PromptPass) -> Update:
        """Choose the first token after the prompt."""
        self.position_shift = read.position_shift
        update = self.accept(read.logits, likeliest=None)
        update.prompt_logprobs = read.logprobs
        return update

    def read_prompt(self) -> PromptPass:
        """Read the prompt."""
        if self.sampling.prompt_logprobs is None:
            logits, cache, shift = self.tree.start(self.prompt, keep=1, pictures=self.pictures)
            return PromptPass(logits[-1].float(), cache, shift)
        size = max(1, _LOGITS_AT_ONCE // self.tree.vocabulary_size)
        # A model reads all pictures of a prompt in one pass, with all of their tokens.
        first = max(size, self.pictures.end)
        chunks = [self.prompt[:first]]
        chunks += [self.prompt[start : start + size] for start in range(first, len(self.prompt), size)]
        logits, cache, shift = self.tree.start(chunks[0], keep=len(chunks[0]), pictures=self.pictures)  # (chunk, vocab)
        logprobs: list[list[TokenLogprob] | None] = [None, *self._logprobs(logits, chunks[0][1:])]
        position = self.tree.virtual_tokens + len(chunks[0]) + shift
        for chunk in chunks[1:]:
            logprobs += self._logprobs(logits[-1:], chunk[:1])
            logits = self.tree.resume(cache, chunk, keep=len(chunk), start=position)
            logprobs += self._logprobs(logits, chunk[1:])
            position += len(chunk)
        return PromptPass(logits[-1].float(), cache, shift, logprobs)

    def _logprobs(self, logits: torch.Tensor, tokens: list[int]) -> list[list[TokenLogprob]]:
        top = self.sampling.prompt_logprobs or 0
        return token_logprobs(logits[: len(tokens)], tokens, top) if tokens else []

    def accept(self, logits: torch.Tensor, *, likeliest: int | None) -> Update:
        """Choose the next token from ``logits`` (vocab,). ``likeliest`` is their argmax; None means not computed yet."""
        if likeliest is None and bool(logits.isnan().any()):
            raise ValueError("the model's logits contain NaN")
        if likeliest is None or not self.sampling.is_plain:
            token = choose(logits, self.sampling, self._generator, prompt=self.prompt, answer=self.answer)
        else:
            token = likeliest
        self.answer.append(token)
        update = Update(token_ids=[token])
        if self.sampling.logprobs is not None:
            update.logprobs = token_logprobs(logits[None], [token], self.sampling.logprobs)
        if token in self._ends:
            update.finish_reason = "stop"
        elif token in self.sampling.stop_token_ids:
            update.finish_reason, update.stop_reason = "stop", token
        else:
            update.text = self._stops.feed(self._text.feed(token))
            if self._stops.match is None and len(self.answer) >= self.sampling.max_tokens:
                update.finish_reason = "length"
        if update.finish_reason and self._stops.match is None:
            update.text += self._stops.feed(self._text.finish()) + self._stops.finish()
        if self._stops.match is not None:
            update.finish_reason, update.stop_reason = "stop", self._stops.match
        return update


class SequenceGroup:
    """Sequences of one tree whose next tokens are computed together, each from its own keys and values.

    As on every server that batches, products of several rows may round differently from those of one row: in float32 by
    about 1e-6 of a logit, in half precision by enough to swap two nearly equal tokens.
    """

    def __init__(self, sequence: Sequence, cache: DynamicCache) -> None:
        self.tree = sequence.tree
        self.sequences = [sequence]
        self._cache = cache
        self._may_grow = self.tree.may_batch and all(type(layer) is DynamicLayer for layer in cache.layers)

    def takes(self, sequence: Sequence) -> bool:
        """Return whether a sequence can join. Caches with a window or a state cannot be padded."""
        return self._may_grow and sequence.tree is self.tree

    def join(self, sequence: Sequence, cache: DynamicCache) -> None:
        """Add a row. Shorter caches are padded on the left."""
        for layer, other in zip(self._cache.layers, cache.layers, strict=True):
            width = max(layer.keys.shape[-2], other.keys.shape[-2])
            layer.keys = torch.cat([_padded(layer.keys, width), _padded(other.keys, width)])  # (rows, heads, seq, head)
            layer.values = torch.cat([_padded(layer.values, width), _padded(other.values, width)])
        self.sequences.append(sequence)

    def keep(self, sequences: Listing[Sequence]) -> None:
        """Drop all other rows, and padding that only they needed."""
        if len(sequences) == len(self.sequences):
            return
        rows = [index for index, sequence in enumerate(self.sequences) if sequence in sequences]
        self.sequences = [self.sequences[row] for row in rows]
        if not rows:
            return
        width = max(sequence.length for sequence in self.sequences)
        for layer in self._cache.layers:
            layer.keys = layer.keys[rows, :, -width:]
            layer.values = layer.values[rows, :, -width:]

    def step(self) -> tuple[torch.Tensor, list[int], list[bool]]:
        """Return the logits (rows, vocab) of every row's next token, the likeliest tokens, and which rows contain NaN."""
        tokens = [sequence.answer[-1] for sequence in self.sequences]
        lengths = [sequence.length for sequence in self.sequences]
        logits = self.tree.step(self._cache, tokens, lengths, [sequence.position_shift for sequence in self.sequences])
        return logits, logits.argmax(dim=-1).tolist(), logits.isnan().any(dim=-1).tolist()


def _padded(cached: torch.Tensor, width: int) -> torch.Tensor:
    return torch.nn.functional.pad(cached, (0, 0, width - cached.shape[-2], 0))
