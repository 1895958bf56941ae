"""Recognise a refused allocation, and measure the peak memory of a phase."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil
import torch

_SAMPLE_S = 0.02

_CPU_REFUSALS = ("can't allocate memory", "Cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the GPU's allocator, torch's CPU allocator or Python refused an allocation."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(refusal in str(error) for refusal in _CPU_REFUSALS)


class PeakMemory:
    """A context manager that measures peak memory into ``bytes``.

    With a GPU that is CUDA's ``max_memory_reserved``, else the process's peak resident memory. Linux records the peak
    (VmHWM) and lets a process reset it. Elsewhere a thread samples every 20 ms, can miss shorter peaks, and sets
    ``is_sampled``.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.is_sampled = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        elif not _restart_high_water_mark():
            self.is_sampled = True
            self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_reserved()
        elif self._thread is None:
            self.bytes = _high_water_mark()
        else:
            self._ended.set()
            self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._ended.wait(_SAMPLE_S):
                return


def _restart_high_water_mark() -> bool:
    """Reset VmHWM to the current resident memory (proc(5), clear_refs). Return False where the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        # Some containers accept the write and ignore it, so check that the mark really fell (16 MiB of slack).
        return _high_water_mark() <= psutil.Process().memory_info().rss + 2**24
    except (OSError, KeyError):
        return False


def _high_water_mark() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["VmHWM"].split()[0]) * 1024
