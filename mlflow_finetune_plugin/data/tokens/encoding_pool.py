"""Batches encoded on every core while the files are still being read; results come back in order.

On Linux by forked processes: the tokenizer and all that was imported is theirs at once, and so is the secret of Python's
hash. A small file is encoded where it is read. Elsewhere, or with one core, by a thread: the tokenizer works outside
Python's lock.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.threads import idle_cores

_HELD = 4  # batches that are not worth a process
_MOST_PROCESSES = 8  # past it, the one that reads is what all wait for
_GARBAGE = 1_000_000  # objects before Python looks for cycles; at 700, as it starts, that is a fifth of the time
_PARALLELISM = "TOKENIZERS_PARALLELISM"

Encode = Callable[[bytes], EncodedBatch]
Collect = Callable[[bytes, EncodedBatch], None]


class EncodingPool:
    """Frames in, (frame, batch) out to ``collect`` in the same order. A context manager that leaves no process behind."""

    def __init__(self, encode: Encode, collect: Collect) -> None:
        self._encode, self._collect = encode, collect
        self._held: list[bytes] = []
        self._waiting: deque[tuple[bytes, Future[EncodedBatch]]] = deque()
        self._executor: Executor | None = None
        self._workers = min(_MOST_PROCESSES, idle_cores().count)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def submit(self, frame: bytes) -> None:
        if self._executor is not None:
            self._send(self._executor, frame)
            return
        self._held.append(frame)
        if len(self._held) > _HELD:
            held, self._held = self._held, []
            self._executor = self._start()
            with _quiet_fork():  # the first submission forks
                self._send(self._executor, held[0])
            for waiting in held[1:]:
                self._send(self._executor, waiting)

    def drain(self) -> None:
        """Collect all that was submitted."""
        for frame in self._held:
            self._collect(frame, self._encode(frame))
        self._held = []
        while self._waiting:
            self._collect_first()

    def _send(self, executor: Executor, frame: bytes) -> None:
        run = _run_in_child if isinstance(executor, ProcessPoolExecutor) else self._encode
        self._waiting.append((frame, executor.submit(run, frame)))
        if len(self._waiting) > 2 * self._workers:
            self._collect_first()

    def _collect_first(self) -> None:
        frame, future = self._waiting.popleft()
        try:
            batch = future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process that encodes rows was killed, perhaps for want of memory; fix: free memory and run it again"
            ) from error
        self._collect(frame, batch)

    def _start(self) -> Executor:
        if self._workers == 1 or not sys.platform.startswith("linux"):
            return ThreadPoolExecutor(1)
        fork = multiprocessing.get_context("fork")
        return ProcessPoolExecutor(self._workers, fork, initializer=_begin_child, initargs=(self._encode, os.getpid()))


_encode_here: Encode | None = None


def _begin_child(encode: Encode, parent: int) -> None:
    """Dies with its parent, and by the signals that the parent may handle in its own way."""
    global _encode_here  # noqa: PLW0603  what a forked process is for
    _encode_here = encode
    gc.set_threshold(_GARBAGE)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _run_in_child(frame: bytes) -> EncodedBatch:
    assert _encode_here is not None
    return _encode_here(frame)


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """The children tokenise on one core each, and share the memory of what is there already."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before
