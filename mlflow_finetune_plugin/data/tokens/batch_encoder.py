"""Encode a batch of conversations in a worker process: tokens, loss masks, hashes and encoding faults."""

from __future__ import annotations

import marshal
from collections.abc import Sequence

import numpy as np

from mlflow_finetune_plugin.data.conversations.chat_turns import whole_text
from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.conversations.split import hash_row, hash_text
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch, pack
from mlflow_finetune_plugin.data.tokens.encoding_faults import encoding_faults
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.evaluation.results import Message

_ALL_BITS = 2**64 - 1

Conversations = list[tuple[Message, ...]]


Groups = list[str]
"""The group of each row; empty where rows have none."""


def to_frame(lines: list[int], conversations: Conversations, groups: Groups | None = None) -> bytes:
    """Serialize rows; the conversations of one line are next to each other."""
    content = (lines, conversations, groups or [])
    return marshal.dumps(content, 2)  # version 2 does not search for shared objects, which is faster


def from_frame(frame: bytes) -> tuple[list[int], Conversations, Groups]:
    lines, conversations, groups = marshal.loads(frame)
    return lines, conversations, groups


class BatchEncoder:
    """Encodes frames. ``seed`` goes into the hashes that the split is made from."""

    def __init__(self, renderer: ChatRenderer, seed: int) -> None:
        self._renderer, self._seed = renderer, seed

    def __call__(self, frame: bytes) -> EncodedBatch:
        lines, conversations, groups = from_frame(frame)
        tokens, counts, faults = pack(self._renderer.encode_batch(conversations))
        hashes = [hash_row(messages, self._seed) for messages in conversations]
        numbers = np.array(lines, dtype=np.int64)
        first_of_line = np.maximum.accumulate(np.where(is_first_of_line(numbers), np.arange(len(numbers)), 0))
        answers = [_normalised_hash(whole_text(messages[-1])) for messages in conversations]
        prompts = [
            answer if is_document(messages) else hash_prompt(messages[:-1])
            for messages, answer in zip(conversations, answers, strict=True)
        ]
        own_hashes, prompt_hashes = _hashes(hashes), _hashes(prompts)
        return EncodedBatch(
            lines=numbers,
            row_hashes=own_hashes[first_of_line],
            line_prompts=prompt_hashes[first_of_line],
            group_hashes=_hashes([hash_text(group, self._seed) for group in groups]),
            own_hashes=own_hashes,
            prompt_hashes=prompt_hashes,
            answer_hashes=_hashes(answers),
            counts=counts,
            tokens=tokens,
            faults=faults,
            odd=[(row, *fault) for row, messages in enumerate(conversations) for fault in _odd(messages)],
        )


def is_first_of_line(lines: np.ndarray) -> np.ndarray:
    """Return whether each row is the first one of its line in the file: bool, (rows,)."""
    return np.concatenate([[True], lines[1:] != lines[:-1]])


def hash_prompt(messages: Sequence[Message]) -> int:
    """Return a 64-bit hash of a prompt that ignores case and whitespace.

    Like Python's ``hash`` it is valid in this process and its forks only.
    """
    if len(messages) == 1:
        return _normalised_hash(whole_text(messages[0]))
    return hash(tuple([(m["role"], _normalised_hash(whole_text(m))) for m in messages])) & _ALL_BITS


def _normalised_hash(text: str) -> int:
    return hash(" ".join(text.lower().split())) & _ALL_BITS


def _hashes(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.uint64)


def _odd(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return each kind of encoding fault in a conversation once, with an excerpt."""
    faults: dict[str, str] = {}
    for message in messages:
        text = message["content"]
        if not (text.isprintable() and text.isascii()):  # a fast test in C that most texts pass
            for fault, excerpt in encoding_faults(text):
                faults.setdefault(fault, excerpt)
    return list(faults.items())
