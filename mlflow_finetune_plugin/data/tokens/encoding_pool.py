"""Encode batches on every core while the files are still being read. Results come back in order.

On Linux the pool forks processes: they share the tokenizer, the imported modules and the seed of Python's ``hash``. A small file
is encoded in the reading process. On other systems, or with one core, a thread encodes, because the tokenizer releases Python's
lock.
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

_HELD = 4  # up to this many batches, starting processes takes longer than encoding
_MOST_PROCESSES = 8  # with more, all of them wait for the process that reads
_GARBAGE = 1_000_000  # objects between garbage collections; Python's default of 700 takes a fifth of the time
_PARALLELISM = "TOKENIZERS_PARALLELISM"

Encode = Callable[[bytes], EncodedBatch]
Collect = Callable[[bytes, EncodedBatch], None]


class EncodingPool:
    """Encodes frames and calls ``collect`` with each frame and its batch, in order. A context manager that ends its processes."""

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
        """Wait for all submitted frames and collect their batches."""
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
                "a process that encodes rows was killed, probably because memory ran out; fix: free memory and run again"
            ) from error
        self._collect(frame, batch)

    def _start(self) -> Executor:
        if self._workers == 1 or not sys.platform.startswith("linux"):
            return ThreadPoolExecutor(1)
        fork = multiprocessing.get_context("fork")
        return ProcessPoolExecutor(self._workers, fork, initializer=_begin_child, initargs=(self._encode, os.getpid()))


_encode_here: Encode | None = None


def _begin_child(encode: Encode, parent: int) -> None:
    """Prepare a worker process: it ends with its parent, and on SIGTERM even if the parent handles that signal."""
    global _encode_here  # noqa: PLW0603  a forked process has one encoder
    _encode_here = encode
    gc.set_threshold(_GARBAGE)
    # The parent decides what Ctrl-C means; the children only wait for it to end them.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    # The parent may have died before prctl took effect.
    if os.getppid() != parent:
        os._exit(1)


def _run_in_child(frame: bytes) -> EncodedBatch:
    assert _encode_here is not None
    return _encode_here(frame)


@contextmanager
def _quiet_fork() -> Iterator[None]:
    """Make the children tokenize on one core each and share the memory that exists at the fork."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = "false"
    # Without freeze, the first garbage collection of a child would copy every page that it shares with the parent.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if before is None:
            del os.environ[_PARALLELISM]
        else:
            os.environ[_PARALLELISM] = before
