"""The decode thread. It takes requests in order, reads one prompt between two steps, and survives failed requests."""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice, takewhile

import torch
from transformers import DynamicCache

from mlflow_finetune_plugin.serving.transformers_engine.sequences import PromptPass, Sequence, SequenceGroup, Update
from mlflow_finetune_plugin.serving.transformers_engine.trees import Tree

logger = logging.getLogger(__name__)

_STOPPED = "the engine was stopped"

Post = Callable[[list[tuple[Sequence, Update]]], None]
"""Receives the updates of one round, in the decode thread. It must not block."""


class Scheduler:
    """Decodes at most ``max_sequences`` at once; the others wait in order.

    After a fault the scheduler reads a token with ``probe``. If that fails, the device is lost: every request ends with an
    error, and ``broken`` holds the reason.
    """

    def __init__(self, *, max_sequences: int, probe: Tree, post: Post) -> None:
        self._max_sequences, self._probe, self._post = max_sequences, probe, post
        self._changed = threading.Condition()
        self._waiting: deque[Sequence] = deque()
        self._groups: list[SequenceGroup] = []
        self._is_closing = False
        self.broken: str | None = None
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)

    @property
    def unfinished(self) -> int:
        """The number of sequences that run or wait."""
        return len(self._waiting) + sum(len(group.sequences) for group in list(self._groups))

    def start(self) -> None:
        self._thread.start()

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Add sequences to the queue. Raises RuntimeError when decoding has stopped."""
        with self._changed:
            if self.broken is not None or self._is_closing:
                raise RuntimeError(self.broken or _STOPPED)
            self._waiting.extend(sequences)
            self._changed.notify()

    def cancel(self, sequences: Iterable[Sequence]) -> None:
        """End sequences at the next round, without another update."""
        with self._changed:
            for sequence in sequences:
                sequence.is_cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End all sequences with an error, and wait for the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        reason = "the decode loop ended; fix: restart the engine"
        try:
            with torch.inference_mode():
                while self._wait():
                    self._round()
            reason = _STOPPED
        except BaseException as error:
            reason = f"the decode loop broke: {type(error).__name__}: {error}; fix: restart the engine"
            logger.critical(reason, exc_info=True)
        finally:
            with self._changed:
                self.broken = reason
                left = [*self._waiting, *(sequence for group in self._groups for sequence in group.sequences)]
                self._waiting.clear()
                self._groups.clear()
            if left:
                self._post([(sequence, Update(error=reason)) for sequence in left])

    def _wait(self) -> bool:
        """Sleep while there is nothing to do. Returns False when the thread should end."""
        with self._changed:
            while not (self._waiting or self._groups or self._is_closing):
                self._changed.wait()
            return not self._is_closing

    def _round(self) -> None:
        self._drop_cancelled()
        updates = self._prefill_next()
        for group in list(self._groups):
            updates += self._step(group)
        self._groups = [group for group in self._groups if group.sequences]
        due = [
            (sequence, merged) for sequence, update in updates if (merged := sequence.due_update(update)) is not None
        ]
        if due:
            self._post(due)

    def _drop_cancelled(self) -> None:
        with self._changed:
            if any(sequence.is_cancelled for sequence in self._waiting):
                self._waiting = deque(sequence for sequence in self._waiting if not sequence.is_cancelled)
        for group in self._groups:
            group.keep([sequence for sequence in group.sequences if not sequence.is_cancelled])
        self._groups = [group for group in self._groups if group.sequences]

    def _prefill_next(self) -> list[tuple[Sequence, Update]]:
        """Read the prompt of the sequence that waits longest, if there is room. Those behind it with the same prompt share the pass."""
        room = self._max_sequences - sum(len(group.sequences) for group in self._groups)
        if not self._waiting or room < 1:
            return []
        first = self._waiting[0]
        sharing = [first, *takewhile(first.shares_prompt, islice(self._waiting, 1, room))]
        read: PromptPass | None = None
        updates = []
        for sequence in sharing:
            try:
                read = read or first.read_prompt()
                update = sequence.begin(read)
                if not update.is_last:
                    self._join_group(sequence, copy.deepcopy(read.cache) if len(sharing) > 1 else read.cache)
            except Exception as error:
                update = self._fault(error)
            self._waiting.popleft()  # only now: if the device failed, this sequence must end with an error too
            updates.append((sequence, update))
            if read is None:
                break  # the others read the prompt themselves, in later rounds
        return updates

    def _join_group(self, sequence: Sequence, cache: DynamicCache) -> None:
        group = next((group for group in self._groups if group.takes(sequence)), None)
        if group is None:
            self._groups.append(SequenceGroup(sequence, cache))
        else:
            group.join(sequence, cache)

    def _step(self, group: SequenceGroup) -> list[tuple[Sequence, Update]]:
        """Decode one token for every row. A fault of the step ends all rows, a fault of one row only that row."""
        try:
            logits, likeliest, is_nan = group.step()
        except Exception as error:
            update = self._fault(error)
            ended, group.sequences = group.sequences, []
            return [(sequence, update) for sequence in ended]
        updates = []
        for row, sequence in enumerate(group.sequences):
            try:
                if is_nan[row]:
                    raise ValueError("the model's logits contain NaN")
                update = sequence.accept(logits[row], likeliest=likeliest[row])
            except Exception as error:
                update = self._fault(error)
            updates.append((sequence, update))
        group.keep([sequence for sequence, update in updates if not update.is_last])
        return updates

    def _fault(self, error: Exception) -> Update:
        """Return the update for a failed step. It raises when the device cannot read even one token."""
        logger.error("a decode step failed", exc_info=error)
        self._probe.start([0], keep=1)
        return Update(error=f"the engine failed on this request: {type(error).__name__}: {error}")
