"""The processes that share each optimizer step, one per device.

Every process draws the same rows and makes the same decisions. The rows of a step are divided among them, and gradients
are summed before the optimizer step. No process communicates inside a forward or backward pass, so each can divide its
rows differently and can repeat its share when memory is short.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from torch import distributed

from mlflow_finetune_plugin.errors import TrainingError

_PATIENCE = timedelta(
    days=7
)  # A dead process is noticed at once; the limit only affects a slow one, for example during a save.
_BUCKET = 2**26
"""Gradient elements summed per call: 256 MiB of float32."""


class PeerLostError(Exception):
    """Another process of this training ended. Its own error has the reason."""


@dataclass(frozen=True)
class Processes:
    """One of ``count`` processes, numbered from 0. The first one also prepares, reports and saves."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> list[int]:
        """Return the indices of this process's rows. Longest first, each row goes to the process with the fewest tokens so far."""
        loads = [0] * self.count
        indices = []
        for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            process = loads.index(min(loads))
            loads[process] += lengths[row]
            if process == self.rank:
                indices.append(row)
        return sorted(indices)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over all processes, in float64. Raises PeerLostError."""
        if self.count == 1:
            return list(values)
        return _reduced(torch.tensor(values, dtype=torch.float64)).tolist()  # type: ignore[no-any-return]

    def any(self, claim: bool) -> bool:
        """Return True on all processes when ``claim`` is true on one."""
        return self.sums([float(claim)])[0] > 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sum gradients over all processes. A parameter without a gradient on any process stays without. Raises PeerLostError."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        holders = self.sums([float(parameter.grad is not None) for parameter in trained])
        for bucket in _buckets([parameter for parameter, count in zip(trained, holders, strict=True) if count]):
            flat = torch.cat([_flat_gradient(parameter) for parameter in bucket])
            _reduced(flat)
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def check_same(self, number: float, what: str) -> None:
        """Raise TrainingError on every process when one has another ``number`` (an integer below 2^32).

        Args:
            number: usually a checksum.
            what: what the number stands for; subject of the error message, in the plural.
        """
        # float64 represents these sums exactly, so the comparison is exact.
        mine, all_of_them = number * self.count, self.sums([number])[0]
        if self.any(mine != all_of_them):
            raise TrainingError(
                f"{what} differ between the {self.count} processes of this training; fix: the same hardware and packages "
                "for all, or one process (-c '{\"gpus_per_node\": 1}')"
            )

    @contextmanager
    def own_random_numbers(self, device: torch.device, *, seed: int, step: int) -> Iterator[None]:
        """Seed dropout for this process and step; restore the common random state, which orders the rows, afterwards."""
        if self.count == 1:
            yield
            return
        before = random_state(device)
        torch.manual_seed((seed * 1_000_003 + step) * self.count + self.rank)
        try:
            yield
        finally:
            set_random_state(device, before)


ALONE = Processes()


@contextmanager
def joined(rank: int, count: int, meeting_place: Path) -> Iterator[Processes]:
    """Join the processes of a training; wait until all are there.

    Args:
        rank: number of this process, from 0.
        count: how many processes there are.
        meeting_place: a file through which they find each other; it must not exist before.
    """
    if count == 1:
        yield ALONE
        return
    _stay_on_this_host()
    store = distributed.FileStore(str(meeting_place), count)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Processes(rank, count)
    finally:
        distributed.destroy_process_group()


def _stay_on_this_host() -> None:
    """Bind gloo to the loopback device. Otherwise it resolves the host's name, which fails in some containers."""
    cards = psutil.net_if_addrs().items()
    loopback = next(card for card, addresses in cards if any(entry.address == "127.0.0.1" for entry in addresses))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """Return a checksum of contents and order, below 2^32."""
    total = 0
    for tensor in tensors:
        data = tensor.detach().to("cpu").contiguous()
        total = zlib.crc32(data.flatten().view(torch.uint8).numpy(), total)
    return total


def random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(device: torch.device, state: tuple[torch.Tensor, torch.Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


def _reduced(tensor: torch.Tensor) -> torch.Tensor:
    try:
        distributed.all_reduce(tensor)
    except RuntimeError as error:  # Gloo's message holds only the peer's address.
        raise PeerLostError(" ".join(str(error).split())[:300]) from error
    return tensor


def _flat_gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.detach().flatten().float()


def _buckets(parameters: list[torch.nn.Parameter]) -> list[list[torch.nn.Parameter]]:
    buckets: list[list[torch.nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not buckets or parameter.numel() > room:
            buckets.append([])
            room = _BUCKET
        buckets[-1].append(parameter)
        room -= parameter.numel()
    return buckets
