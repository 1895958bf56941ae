"""Choose the held-out rows by a seeded hash, so that every machine chooses the same ones."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring

import numpy as np

from mlflow_finetune_plugin.data.conversations.turns.chat import whole_text
from mlflow_finetune_plugin.evaluation.results import EvalRow, Message

DEFAULT_EVAL_FRACTION = 0.1
DEFAULT_EVAL_ROWS = 500
_EVERYTHING = 2**64


@dataclass(frozen=True)
class PromptGroups:
    """The prompts that several different rows have, each with the hash that decides for all of them.

    Attributes:
        prompts: Hashes of these prompts, uint64, sorted.
        hashes: The lowest row hash of each prompt, uint64.
    """

    prompts: np.ndarray
    hashes: np.ndarray

    @classmethod
    def of(cls, row_hashes: np.ndarray, prompt_hashes: np.ndarray) -> PromptGroups:
        order = np.lexsort((row_hashes, prompt_hashes))
        prompts, rows = prompt_hashes[order], row_hashes[order]
        same_prompt = prompts[1:] == prompts[:-1]
        differs = np.unique(prompts[1:][same_prompt & (rows[1:] != rows[:-1])])
        return cls(differs, rows[np.searchsorted(prompts, differs)] if len(differs) else differs)

    def split_hashes(self, row_hashes: np.ndarray, prompt_hashes: np.ndarray) -> np.ndarray:
        """Return the hash that decides for each row: its own, or that of its prompt's group; uint64, (rows,)."""
        if not len(self.prompts):
            return row_hashes
        at = np.minimum(np.searchsorted(self.prompts, prompt_hashes), len(self.prompts) - 1)
        return np.where(self.prompts[at] == prompt_hashes, self.hashes[at], row_hashes)


@dataclass(frozen=True)
class Split:
    """The rows with a hash below ``below`` are held out; ``description`` explains the choice in words.

    ``groups`` keeps the answers of one prompt on the same side.
    """

    below: int
    description: str
    groups: PromptGroups | None = None

    def held_out(self, hashes: np.ndarray, prompt_hashes: np.ndarray | None = None) -> np.ndarray:
        """Return whether each row is held out: bool, (rows,)."""
        if self.below >= _EVERYTHING:
            return np.ones(len(hashes), dtype=np.bool_)
        if self.groups is not None and prompt_hashes is not None:
            hashes = self.groups.split_hashes(hashes, prompt_hashes)
        return hashes < np.uint64(self.below)


def split_of_train(
    row_hashes: array[int],
    fraction: float | None,
    max_rows: int | None,
    seed: int,
    *,
    prompt_hashes: array[int] | None = None,
) -> Split:
    """Hold out a fraction of the training rows. Duplicates, and the answers of one prompt, stay on the same side.

    Prompts with more rows than may be held out are an exception where nothing else is left to hold out.

    Args:
        row_hashes: ``hash_row`` of every training row.
        fraction: Share to hold out, from 0 to 1; None means a tenth, at most 500 rows.
        max_rows: Most rows to hold out; None means no limit.
        seed: The seed that the hashes were made with; named in the description.
        prompt_hashes: A hash of each row's prompt; None means that rows are not grouped by their prompts.
    """
    target, share_text = wanted_rows(len(row_hashes), fraction, max_rows)
    hashes, groups = sorted_hashes(row_hashes), None
    if prompt_hashes is not None and len(row_hashes):
        rows, prompts = (np.frombuffer(values, dtype=np.uint64) for values in (row_hashes, prompt_hashes))
        groups = PromptGroups.of(rows, prompts)
        grouped = np.sort(groups.split_hashes(rows, prompts))
        if _lowest(grouped, target, leave_one=True)[1]:
            hashes = grouped
        else:
            groups = None
    below, held_out = _lowest(hashes, target, leave_one=True)
    by = f"by a hash with seed {seed}"
    if groups is not None and len(groups.prompts):
        by += "; all answers of a prompt on one side"
    return Split(below, f"{share_text}: {held_out:,} of {len(hashes):,} rows, {by}", groups)


def wanted_rows(rows: int, fraction: float | None, max_rows: int | None) -> tuple[int, str]:
    """Return how many of the training rows to hold out, at least one, and the rule in words."""
    limits = [max_rows, DEFAULT_EVAL_ROWS if fraction is None else None]
    limit = min((most for most in limits if most is not None), default=None)
    share = DEFAULT_EVAL_FRACTION if fraction is None else fraction
    target = max(1, round(share * rows))
    most_text = "" if limit is None else f", at most {limit:,}"
    share_text = f"{'by default ' if fraction is None else ''}{share:g} of the training rows{most_text}"
    return (target if limit is None else min(target, limit)), share_text


@dataclass(frozen=True)
class ValidationSplit:
    """The training rows with a hash from ``start`` to below ``end`` choose the best weights, and are not trained on."""

    start: int
    end: int
    description: str
    groups: PromptGroups | None = None

    def chosen(self, hashes: np.ndarray, prompt_hashes: np.ndarray) -> np.ndarray:
        """Return whether each training row is a validation row: bool, (rows,)."""
        if self.groups is not None:
            hashes = self.groups.split_hashes(hashes, prompt_hashes)
        return (hashes >= np.uint64(self.start)) & (hashes < np.uint64(self.end))


def validation_of_train(
    row_hashes: array[int], prompt_hashes: array[int] | None, held_out: Split | None, fraction: float
) -> ValidationSplit:
    """Take a fraction of the rows that are left to train on, by the next hashes after those of the held-out rows.

    Duplicates, and the answers of one prompt, stay on the same side, and at least one row is left to train on.

    Args:
        row_hashes: ``hash_row`` of every training row, or the hash of its group.
        prompt_hashes: A hash of each row's prompt; None where whole groups stay together.
        held_out: How training rows are held out; None where the held-out rows come from other files.
        fraction: Share of the rows that are not held out, from 0 to 1; at most 500 rows.
    """
    rows = np.frombuffer(row_hashes, dtype=np.uint64) if row_hashes else np.empty(0, dtype=np.uint64)
    prompts = None if prompt_hashes is None else np.frombuffer(prompt_hashes, dtype=np.uint64)
    start, groups = 0, PromptGroups.of(rows, prompts) if prompts is not None and len(rows) else None
    if held_out is not None:
        start, groups = held_out.below, held_out.groups
    hashes = np.sort(rows if groups is None or prompts is None else groups.split_hashes(rows, prompts))
    left = hashes[np.searchsorted(hashes, np.uint64(min(start, _EVERYTHING - 1))) :]
    target = min(max(1, round(fraction * len(left))), DEFAULT_EVAL_ROWS)
    below, size = _lowest(left, target, leave_one=True)
    of = f"{fraction:g} of the rows that are left to train on, at most {DEFAULT_EVAL_ROWS}"
    return ValidationSplit(start, max(start, below), f"{of}: {size:,} of {len(left):,} rows", groups)


def sample_of_eval(place_hashes: array[int], max_rows: int | None, seed: int) -> Split:
    """Choose at most ``max_rows`` rows from all over the eval files, because the first rows may all be of one kind."""
    hashes = sorted_hashes(place_hashes)
    if max_rows is None or len(hashes) <= max_rows:
        return Split(_EVERYTHING, "all rows of the eval files are held out")
    below, sampled = _lowest(hashes, max_rows, leave_one=False)
    return Split(below, f"{sampled:,} of the eval files' {len(hashes):,} rows, by a hash with seed {seed}")


def sorted_hashes(hashes: array[int]) -> np.ndarray:
    return np.sort(np.frombuffer(hashes, dtype=np.uint64)) if hashes else np.empty(0, dtype=np.uint64)


def _lowest(hashes: np.ndarray, limit: int, *, leave_one: bool) -> tuple[int, int]:
    """Return a bound with at most ``limit`` hashes below it, and their number. Equal hashes stay together."""
    # A split of the training rows leaves at least one row to train on.
    most = min(limit, len(hashes) - 1 if leave_one else len(hashes))
    if most <= 0:
        return 0, 0
    if most == len(hashes):
        return _EVERYTHING, most
    below = int(hashes[most])
    return below, int(np.searchsorted(hashes, hashes[most], side="left"))


def hash_text(text: str, seed: int = 0) -> int:
    """Return a 64-bit hash of ``text``, the same on every machine and in every process."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=b"%d" % seed)
    return int.from_bytes(digest.digest(), "little")


def hash_row(messages: Sequence[Message], seed: int) -> int:
    """Return a 64-bit hash of a conversation, equal for exact duplicates."""
    turns = [f'["{message["role"]}", {encode_basestring(whole_text(message))}]' for message in messages]
    return hash_text(f"[{', '.join(turns)}]", seed)  # equals json.dumps of [[role, content], ...], and is faster


def hash_eval_row(row: EvalRow, seed: int) -> int:
    """Return the ``hash_row`` that a held-out row would have as a training row."""
    return hash_row(row.turns, seed)
