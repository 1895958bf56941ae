"""Predict the memory of a run from counts and shapes, and measure what this machine has left. No torch at the top.

The memory of one micro-batch is traced (step_trace.py). This file adds the parts that follow from counts: weights in their
precision, the adapter, its gradients and the optimizer's states.
"""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import psutil

_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))

_ROOT = Path("/sys/fs/cgroup")

MIB = 2**20

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A parameter in nf4 with double quantisation: 4 bits, an 8 bit scale per 64, a float32 per 256 scales (arXiv 2305.14314)."""

_STATE_BYTES = {
    "adamw_torch": None,
    "adamw_torch_fused": None,
    "adafactor": 0.05,  # one number per row and column
    "sgd": 0.0,
    "adamw_8bit": 2 + 8 / 256,
    "paged_adamw_8bit": 2 + 8 / 256,
    "paged_adamw_32bit": 8.0,
    "lion_32bit": 4.0,
    "paged_lion_8bit": 1 + 4 / 256,
}
"""Bytes of optimizer state per trainable parameter; None means twice the parameter's own bytes."""


@dataclass(frozen=True)
class MemoryParts:
    """Bytes at the peak of training, by part; ``loading`` and ``proof`` are the peaks of the other phases.

    ``sampling_engine`` is all that the process of an engine that samples completions holds beside the worker: a second copy of the
    base, and the completions of a step.
    """

    process: int
    base_weights: int
    adapter: int
    gradients: int
    optimizer: int
    micro_batch: int
    loading: int
    proof: int
    sampling_engine: int = 0

    @property
    def training(self) -> int:
        """The peak while training, of the worker and of an engine that samples."""
        return self.worker + self.sampling_engine

    @property
    def worker(self) -> int:
        """The peak of the worker while training."""
        return self.process + self.base_weights + self.adapter + self.gradients + self.optimizer + self.micro_batch

    @property
    def training_and_loading(self) -> int:
        """The worker's peak from the first weight read to the last step, as ``train/peak_memory_mib`` measures it."""
        return max(self.worker, self.loading)

    @property
    def total(self) -> int:
        """The peak of the whole run."""
        return max(self.training, self.loading, self.proof)

    @property
    def peak_phase(self) -> str:
        """The phase with the highest peak."""
        phases = {"training": self.training, "loading": self.loading, "proof": self.proof}
        return max(phases, key=lambda name: phases[name])

    def to_json(self) -> dict[str, int | str]:
        """Return every part and the sums, in bytes."""
        return {**asdict(self), "training": self.training, "total": self.total, "peak_phase": self.peak_phase}


def weight_bytes(
    parameters: int, linear_shapes: Mapping[str, tuple[int, ...]], dtype: str, quantization: str | None
) -> int:
    """Return the bytes of the base's weights. bitsandbytes quantises linear layers, not embeddings, norms and output head."""
    if quantization is None:
        return parameters * DTYPE_BYTES[dtype]
    counts = [(prod(shape), shape[0]) for shape in linear_shapes.values()]
    linear = sum(count for count, _ in counts)
    if quantization == "nf4":
        held = linear * NF4_BYTES + len(counts) * 4 * (256 + 16)
    else:
        held = linear + sum(4 * rows for _, rows in counts)
    return int(held) + (parameters - linear) * DTYPE_BYTES[dtype]


def optimizer_bytes(optim: str, trainable: int, trainable_bytes: int) -> int:
    """Return the bytes of optimizer state of all trainable parameters."""
    per_parameter = _STATE_BYTES[optim]
    return 2 * trainable_bytes if per_parameter is None else int(trainable * per_parameter)


def mib(size: float) -> float:
    """Return bytes as MiB."""
    return size / MIB


@dataclass(frozen=True)
class MemoryRoom:
    """The bytes that the worker can use on the GPU or on this host, and the name of the limit."""

    bytes: int
    limit: str


def memory_room(processes: int = 1) -> MemoryRoom:
    """Return CUDA's free memory where there is a GPU, else ``host_room``.

    The memory that this process already holds counts as its own. Free memory of the host is divided by ``processes``, the
    number of processes of the run.
    """
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return MemoryRoom(free + torch.cuda.memory_reserved(), f"free on {torch.cuda.get_device_name()}")
    return host_room(processes)


def host_room(processes: int = 1) -> MemoryRoom:
    """Return the smallest of available RAM, control group limit and address space limit (RLIMIT_AS)."""
    process = psutil.Process().memory_info()
    shared = f", shared by {processes} processes" if processes > 1 else ""
    available = psutil.virtual_memory().available // processes
    rooms = [MemoryRoom(process.rss + available, f"available RAM{shared}")]
    for limit, used in _CGROUPS:
        free = _cgroup_free(_ROOT / limit, _ROOT / used)
        if free is not None:
            rooms.append(MemoryRoom(process.rss + free // processes, f"the cgroup's memory limit{shared}"))
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        rooms.append(MemoryRoom(process.rss + max(0, soft - process.vms), "RLIMIT_AS (ulimit -v)"))
    return min(rooms, key=lambda room: room.bytes)


def _cgroup_free(limit: Path, used: Path) -> int | None:
    """Return the free bytes of a control group, or None where it does not exist or has no limit."""
    try:
        most, now = limit.read_text().strip(), int(used.read_text())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    if most == "max" or int(most) >= 2**60:
        return None
    return max(0, int(most) - now)
