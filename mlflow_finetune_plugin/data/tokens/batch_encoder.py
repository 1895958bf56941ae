"""Encode a batch of conversations in a worker process: tokens, loss masks, hashes and encoding faults."""

from __future__ import annotations

import json
import marshal
from collections.abc import Iterator, Sequence

import numpy as np

from mlflow_finetune_plugin.data.conversations.conversion import is_document
from mlflow_finetune_plugin.data.conversations.row_faults import SEVERAL_ANSWERS, RowFault
from mlflow_finetune_plugin.data.conversations.split import hash_row, hash_text
from mlflow_finetune_plugin.data.conversations.turns.chat import is_learnt, whole_text
from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch, pack
from mlflow_finetune_plugin.data.tokens.encoding_faults import UNKNOWN, encoding_faults
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer, Example
from mlflow_finetune_plugin.data.tokens.unknown_characters import UnknownCharacters
from mlflow_finetune_plugin.evaluation.results import Message
from mlflow_finetune_plugin.methods import RowForm

_ALL_BITS = 2**64 - 1
_SHOWN_CHARACTERS = 20

Conversations = list[tuple[Message, ...]]


Groups = list[str]
"""The group of each row; empty where rows have none."""

Beside = tuple[tuple[Message, ...], bool | None, float | None, str]
"""What a row holds beside its conversation: ``rejected``, ``is_good``, ``margin`` and ``fields`` of a ``Conversation``."""


def to_frame(
    lines: list[int],
    conversations: Conversations,
    groups: Groups | None = None,
    beside: list[Beside] | None = None,
) -> bytes:
    """Serialize rows; the conversations of one line are next to each other. ``beside`` is empty for rows of answers."""
    content = (lines, conversations, groups or [], beside or [])
    return marshal.dumps(content, 2)  # version 2 does not search for shared objects, which is faster


def from_frame(frame: bytes) -> tuple[list[int], Conversations, Groups, list[Beside]]:
    lines, conversations, groups, beside = marshal.loads(frame)
    return lines, conversations, groups, beside


class BatchEncoder:
    """Encodes frames. ``seed`` goes into the hashes that the split is made from; ``form`` is that of the rows."""

    def __init__(self, renderer: ChatRenderer, seed: int, form: RowForm = "answers") -> None:
        self._renderer, self._seed, self._form = renderer, seed, form
        self._characters = UnknownCharacters(renderer.tokenizer)

    def __call__(self, frame: bytes) -> EncodedBatch:
        lines, conversations, groups, beside = from_frame(frame)
        tokens, counts, faults = pack(self._encoded(conversations, beside))
        hashes = [hash_row(messages, self._seed) for messages in _whole(conversations, beside)]
        numbers = np.array(lines, dtype=np.int64)
        first_of_line = np.maximum.accumulate(np.where(is_first_of_line(numbers), np.arange(len(numbers)), 0))
        answers = self._answer_hashes(conversations, beside)
        ends = None if self._form == "prompts" else -1
        prompts = [
            answer if is_document(messages) else hash_prompt(messages[:ends])
            for messages, answer in zip(conversations, answers, strict=True)
        ]
        own_hashes, prompt_hashes = _hashes(hashes), _hashes(prompts)
        chats = [hash_row(messages, self._seed) for messages in conversations] if beside else hashes
        return EncodedBatch(
            lines=numbers,
            row_hashes=own_hashes[first_of_line],
            line_prompts=prompt_hashes[first_of_line],
            group_hashes=_hashes([hash_text(group, self._seed) for group in groups]),
            own_hashes=own_hashes,
            chat_hashes=_hashes(chats),
            prompt_hashes=prompt_hashes,
            answer_hashes=_hashes(answers),
            counts=counts,
            tokens=tokens,
            faults=faults,
            odd=[
                *(
                    (row, *fault)
                    for row, messages in enumerate(_whole(conversations, beside))
                    for fault in _odd(messages)
                ),
                *self._unknown(conversations, beside, counts),
            ],
        )

    def _encoded(self, conversations: Conversations, beside: list[Beside]) -> list[list[Example] | RowFault]:
        if self._form == "prompts":
            return self._renderer.encode_prompts(conversations)
        if self._form == "pairs":
            better = self._renderer.encode_batch(conversations)
            worse = self._renderer.encode_batch([rejected for rejected, *_ in beside])
            return [_one_pair(*sides) for sides in zip(better, worse, strict=True)]
        encoded = self._renderer.encode_batch(conversations)
        return encoded if self._form == "answers" else [_one(result) for result in encoded]

    def _unknown(
        self, conversations: Conversations, beside: list[Beside], counts: np.ndarray
    ) -> Iterator[tuple[int, str, str]]:
        """Yield (row, fault, excerpt) of rows whose answer has characters that the tokenizer does not know.

        Of a pair, only the better answer counts: that the base cannot write the worse one does no harm. Of a prompt, the
        reference answer counts.
        """
        for row in [] if self._characters.knows_all else np.flatnonzero(counts).tolist():
            fields = beside[row][3] if self._form == "prompts" else ""
            if unknown := self._characters.in_text(_answer(conversations[row], fields)):
                yield row, UNKNOWN, repr(unknown[:_SHOWN_CHARACTERS])

    def _answer_hashes(self, conversations: Conversations, beside: list[Beside]) -> list[int]:
        """Return a hash of what a row wants of its prompt: an answer, the answer of a pair with its rival, or a prompt's fields."""
        if self._form == "prompts":
            return [_normalised_hash(fields) for *_, fields in beside]
        answers = [_normalised_hash(whole_text(messages[-1])) for messages in conversations]
        if self._form == "answers":
            return answers
        return [
            hash((answer, rejected and _normalised_hash(whole_text(rejected[-1])), is_good)) & _ALL_BITS
            for answer, (rejected, is_good, *_) in zip(answers, beside, strict=True)
        ]


def _answer(messages: Sequence[Message], fields: str) -> str:
    """Return the text that a row wants: its document, the turns that are learned, or the reference of a prompt."""
    if fields:
        reference = json.loads(fields).get("reference")
        return reference if isinstance(reference, str) else ""
    if is_document(messages):
        return whole_text(messages[0])
    return "\n".join(whole_text(message) for message in messages if is_learnt(message))


def _whole(conversations: Conversations, beside: list[Beside]) -> Conversations:
    """Return the turns of each row, with the rejected answer, the rating and the fields as further turns, for hashes and checks."""
    if not beside:
        return conversations
    whole = []
    for messages, (rejected, is_good, _, fields) in zip(conversations, beside, strict=True):
        rating = "" if is_good is None else str(is_good)
        more = [{"role": "fields", "content": text} for text in (rating, fields) if text]
        whole.append((*messages, *rejected[-1:], *more))
    return whole


def _one(result: list[Example] | RowFault) -> list[Example] | RowFault:
    """Return the only example of an answer, or why there is none."""
    return result if isinstance(result, RowFault) or len(result) == 1 else RowFault(SEVERAL_ANSWERS)


def _one_pair(better: list[Example] | RowFault, worse: list[Example] | RowFault) -> list[Example] | RowFault:
    better, worse = _one(better), _one(worse)
    if isinstance(better, RowFault):
        return RowFault(better.reason, better.detail)
    if isinstance(worse, RowFault):
        return RowFault(worse.reason, f"the worse answer: {worse.detail}" if worse.detail else "the worse answer")
    return [*better, *worse]


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
