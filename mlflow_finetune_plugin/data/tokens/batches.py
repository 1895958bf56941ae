"""Batches of conversations as arrays of token ids, loss masks and hashes, cheap to send between processes."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.tokens.renderer import Example


@dataclass(frozen=True)
class TokenBatch:
    """Examples one after the other.

    Attributes:
        ids: Token ids, int32, (tokens,).
        mask: 1 where a token carries loss, uint8, (tokens,).
        lengths: Tokens of each example, int32, (examples,).
        is_split: Whether prompt and answer were tokenized apart, bool, (examples,).
        pictures: The names of each example's pictures; empty where no example has any.
    """

    ids: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    is_split: np.ndarray
    pictures: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        lengths = np.fromiter([len(example.input_ids) for example in examples], np.int32, len(examples))
        ids: list[int] = []
        for example in examples:
            ids += example.input_ids
        mask = np.frombuffer(b"".join([bytes(example.loss_mask) for example in examples]), np.uint8)
        is_split = np.fromiter([example.is_boundary_split for example in examples], np.bool_, len(examples))
        pictures = tuple(example.pictures for example in examples)
        return cls(np.fromiter(ids, np.int32, len(ids)), mask, lengths, is_split, pictures if any(pictures) else ())

    def pictures_of(self, number: int) -> tuple[str, ...]:
        """Return the names of an example's pictures."""
        return self.pictures[number] if self.pictures else ()

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def offsets(self) -> np.ndarray:
        """Return where each example starts, and the end: int64, (examples + 1,)."""
        return np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)])

    def example(self, number: int) -> Example:
        part = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        pictures = self.pictures_of(number)
        return Example(self.ids[part].tolist(), self.mask[part].tolist(), bool(self.is_split[number]), pictures)

    def take(self, numbers: np.ndarray) -> TokenBatch:
        """Return these examples in this order; a number may occur several times."""
        if len(numbers) == len(self) and np.array_equal(numbers, np.arange(len(self))):
            return self
        lengths = self.lengths[numbers]
        ends = np.cumsum(lengths, dtype=np.int64)
        tokens = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(
            self.offsets[numbers] - ends + lengths, lengths
        )
        pictures = tuple(self.pictures[number] for number in numbers.tolist()) if self.pictures else ()
        return TokenBatch(self.ids[tokens], self.mask[tokens], lengths, self.is_split[numbers], pictures)

    def after(self, first: Sequence[int]) -> TokenBatch:
        """Return these examples, each after the ids ``first``, which carry no loss."""
        if not first:
            return self
        starts = np.repeat(self.offsets[:-1], len(first))
        ids = np.insert(self.ids, starts, np.tile(np.array(first, dtype=np.int32), len(self)))
        lengths = self.lengths + np.int32(len(first))
        return replace(self, ids=ids, mask=np.insert(self.mask, starts, 0), lengths=lengths)


@dataclass(frozen=True)
class EncodedBatch:
    """Encoded conversations in their order. All arrays have the shape (rows,), except ``group_hashes``.

    Attributes:
        lines: The line of each conversation in its file, int64.
        row_hashes: The hash of the first conversation of the same line, uint64; the split depends on it.
        line_prompts: The hash of the prompt of the first conversation of the same line, uint64, as ``prompt_hashes``.
        group_hashes: The hash of each row's group, uint64; (0,) where rows have none.
        own_hashes: The exact hash of each row, with all that it holds beside its conversation, uint64.
        chat_hashes: The ``hash_row`` of each conversation, uint64.
        prompt_hashes: Hashes that ignore case and whitespace, uint64.
        answer_hashes: Hashes that ignore case and whitespace, uint64.
        counts: Examples per conversation, int64; 0 for a fault.
        tokens: The examples.
        faults: (row, reason, detail) of conversations that cannot be used.
        odd: (row, fault, excerpt) of encoding faults in the text.
    """

    lines: np.ndarray
    row_hashes: np.ndarray
    line_prompts: np.ndarray
    group_hashes: np.ndarray
    own_hashes: np.ndarray
    chat_hashes: np.ndarray
    prompt_hashes: np.ndarray
    answer_hashes: np.ndarray
    counts: np.ndarray
    tokens: TokenBatch
    faults: list[tuple[int, str, str]]
    odd: list[tuple[int, str, str]]

    def __len__(self) -> int:
        return len(self.lines)

    @cached_property
    def starts(self) -> np.ndarray:
        """Return the first example of each row, and the end: int64, (rows + 1,)."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def longest(self) -> np.ndarray:
        """Return the tokens of each row's longest example: int32, (rows,); 0 for a fault."""
        longest = np.zeros(len(self), dtype=np.int32)
        rows = np.flatnonzero(self.counts)
        if len(rows):
            longest[rows] = np.maximum.reduceat(self.tokens.lengths, self.starts[:-1][rows])
        return longest

    def examples(self, row: int) -> list[Example]:
        return [self.tokens.example(number) for number in range(int(self.starts[row]), int(self.starts[row + 1]))]

    def with_examples(self, changed: Mapping[int, Sequence[Example]]) -> EncodedBatch:
        """Return a batch in which some rows have other examples, or none."""
        counts, parts, at = self.counts.copy(), [], 0
        for row in sorted(changed):
            parts += [self.tokens.take(np.arange(at, self.starts[row])), TokenBatch.of(changed[row])]
            counts[row], at = len(changed[row]), int(self.starts[row + 1])
        parts.append(self.tokens.take(np.arange(at, len(self.tokens))))
        return replace(self, counts=counts, tokens=_joined(parts))

    def to_bytes(self) -> bytes:
        return pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)

    @staticmethod
    def from_bytes(data: bytes) -> EncodedBatch:
        """Read what ``to_bytes`` of this program wrote. The bytes are trusted, so they must not come from outside."""
        batch = pickle.loads(data)
        assert isinstance(batch, EncodedBatch)
        return batch


def pack(encoded: Sequence[Sequence[Example] | RowFault]) -> tuple[TokenBatch, np.ndarray, list[tuple[int, str, str]]]:
    """Return the tokens, the number of examples of each row, and (row, reason, detail) of the faults."""
    examples: list[Example] = []
    counts = np.zeros(len(encoded), dtype=np.int64)
    faults = []
    for row, result in enumerate(encoded):
        if isinstance(result, RowFault):
            faults.append((row, result.reason, result.detail))
        else:
            examples += result
            counts[row] = len(result)
    return TokenBatch.of(examples), counts, faults


def _joined(parts: Sequence[TokenBatch]) -> TokenBatch:
    return TokenBatch(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.mask for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.is_split for part in parts]),
        tuple(part.pictures_of(number) for part in parts for number in range(len(part)))
        if any(part.pictures for part in parts)
        else (),
    )
