"""Choose how many threads a computation gets. Uses only the standard library, so that every room can import it.

A small model on a busy machine trains faster on one thread than on all: each matrix product ends at a barrier, and every
thread there waits for the one whose core another process uses. On two busy cores the quickstart took 25 to 400 times as
long with two threads as with one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

USER_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

_TINY_HIDDEN_SIZE = 512  # below it a matrix product is finished before a second thread has begun
_COLUMNS_PER_THREAD = 64  # of the hidden size; with fewer, a thread has too little work between two barriers
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class ThreadChoice:
    """A number of threads and why it was chosen."""

    count: int
    why: str

    def __str__(self) -> str:
        return f"{self.count}: {self.why}"


def choose_threads(
    hidden_size: int,
    *,
    processes: int = 1,
    environment: Mapping[str, str] | None = None,
    cores: int | None = None,
    host_cores: int | None = None,
    load: float | None = None,
) -> ThreadChoice:
    """Choose the number of compute threads of one process.

    Args:
        hidden_size: Width of the model.
        processes: How many processes share the machine for this training.
        environment: Variables of the process; default: ``os.environ``. A number that the user set there wins.
        cores: Cores that the process may use; default: as the kernel says.
        host_cores: Cores of the whole machine, to which ``load`` refers; default: as the kernel says.
        load: Processes that want to run, averaged over a minute; default: as the kernel says.
    """
    environment = os.environ if environment is None else environment
    for name in USER_VARIABLES:
        if environment.get(name, "").isdecimal() and int(environment[name]) > 0:
            return ThreadChoice(int(environment[name]), f"{name} is set")
    cores = allowed_cores() if cores is None else cores
    if cores == 1:
        return ThreadChoice(1, "this process may use one core")
    if hidden_size < _TINY_HIDDEN_SIZE:
        return ThreadChoice(1, f"a hidden size of {hidden_size:,} is too small to divide among {cores} cores")
    idle = idle_cores(cores=cores, host_cores=host_cores, load=load)
    share = max(1, idle.count // processes)
    widest = hidden_size // _COLUMNS_PER_THREAD
    if widest < share:
        return ThreadChoice(widest, f"a hidden size of {hidden_size:,} keeps no more of the {cores} cores at work")
    return ThreadChoice(share, idle.why if processes == 1 else f"{idle.why}; shared by {processes} processes")


def idle_cores(*, cores: int | None = None, host_cores: int | None = None, load: float | None = None) -> ThreadChoice:
    """Return how many of the allowed cores other processes leave idle, at least 1. The arguments are those of ``choose_threads``."""
    cores = allowed_cores() if cores is None else cores
    host_cores = (os.cpu_count() or cores) if host_cores is None else host_cores
    load = _load() if load is None else load
    count = max(1, min(cores, math.floor(host_cores - load + 0.5)))
    if count == cores:
        return ThreadChoice(count, f"all {cores} cores are free (load {load:.1f})" if cores > 1 else "one core")
    return ThreadChoice(count, f"other processes use the rest of the {cores} cores (load {load:.1f})")


def allowed_cores() -> int:
    """Return how many cores this process may use: by its affinity, and by the CPU quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def cpu_quota(mount: Path = _CGROUPS, membership: Path = _OWN_CGROUP) -> float | None:
    """Return the CPUs that the control groups of this process grant, in cores; None without a limit.

    Args:
        mount: Where the control groups are mounted, version 1 or 2.
        membership: The file in which the kernel names the groups of this process.
    """
    quotas = [_quota_v2(folder) for folder in _groups(mount, _paths(membership, ""))]
    for controller in ("cpu", "cpu,cpuacct", "cpuacct,cpu"):
        if (mount / controller).is_dir():
            quotas += [_quota_v1(folder) for folder in _groups(mount / controller, _paths(membership, controller))]
    return min((quota for quota in quotas if quota is not None), default=None)


def _load() -> float:
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def _paths(membership: Path, controller: str) -> str:
    """Return the path of this process's group; in a container it may name a folder that is not mounted there."""
    try:
        lines = membership.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return "/"
    fields = [line.split(":", 2) for line in lines if line.count(":") >= 2]
    return next((path for _, controllers, path in fields if controllers == controller), "/")


def _groups(mount: Path, path: str) -> list[Path]:
    """Return the folders of a group and of the groups around it: each can limit the process."""
    group = mount / path.strip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _quota_v2(folder: Path) -> float | None:
    fields = _words(folder / "cpu.max")
    return _cores(*fields[:2]) if len(fields) >= 2 else None


def _quota_v1(folder: Path) -> float | None:
    quota, period = _words(folder / "cpu.cfs_quota_us"), _words(folder / "cpu.cfs_period_us")
    return _cores(quota[0], period[0]) if quota and period else None


def _cores(quota: str, period: str) -> float | None:
    """Return the ratio of two numbers of microseconds; ``max`` and -1 mean no limit."""
    if not quota.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None
    return int(quota) / int(period)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []
