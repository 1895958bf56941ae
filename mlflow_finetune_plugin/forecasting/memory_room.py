"""How much memory a run may have on this machine now. No torch at the top."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

import psutil

_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryRoom:
    """Bytes that the worker may hold in all, on the GPU or on this host, and what sets the limit."""

    bytes: int
    limit: str


def memory_room(processes: int = 1) -> MemoryRoom:
    """CUDA's free memory where there is a GPU; else the smallest of available RAM, cgroup limit and RLIMIT_AS headroom.

    What this process holds already is part of its own room; what is free on the host is for all ``processes`` of the run.
    """
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return MemoryRoom(free + torch.cuda.memory_reserved(), f"free on {torch.cuda.get_device_name()}")
    return host_room(processes)


def host_room(processes: int = 1) -> MemoryRoom:
    """The smallest of what RAM, the control group and the address space limit leave."""
    process = psutil.Process().memory_info()
    shared = f", shared by {processes} processes" if processes > 1 else ""
    available = psutil.virtual_memory().available // processes
    found = [MemoryRoom(process.rss + available, f"available RAM{shared}")]
    for limit, used in _CGROUPS:
        free = _cgroup_free(_ROOT / limit, _ROOT / used)
        if free is not None:
            found.append(MemoryRoom(process.rss + free // processes, f"the cgroup's memory limit{shared}"))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(MemoryRoom(process.rss + max(0, soft - process.vms), "RLIMIT_AS (ulimit -v)"))
    return min(found, key=lambda room: room.bytes)


def _cgroup_free(limit: Path, used: Path) -> int | None:
    """None where there is no such control group, or no limit in it."""
    try:
        most, now = limit.read_text().strip(), int(used.read_text())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    if most == "max" or int(most) >= 2**60:
        return None
    return max(0, int(most) - now)
