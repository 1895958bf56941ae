"""The processes that share an optimiser step, each on its own device.

Every process draws the same rows and takes the same decisions; a step's rows are divided among them, and what they
computed is summed before the optimiser moves. No process talks to another inside a forward or backward pass, so each
may divide its rows as it likes, and start its part again when memory is short.
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

_PATIENCE = timedelta(days=7)  # a process that dies is seen at once; one that works long, in a save say, is waited for
_BUCKET = 2**26
"""Numbers that are summed at a time: 256 MiB."""


class PeerLostError(Exception):
    """Another process of the training is gone. It knows why, this one does not."""


@dataclass(frozen=True)
class Processes:
    """``rank`` of ``count``; the first tells the run's story, the others only train."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> list[int]:
        """Which of a step's rows are this process's: longest first, each to whoever has the fewest tokens so far."""
        loads = [0] * self.count
        indices = []
        for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
            process = loads.index(min(loads))
            loads[process] += lengths[row]
            if process == self.rank:
                indices.append(row)
        return sorted(indices)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all processes, in float64. Raises PeerLostError."""
        if self.count == 1:
            return list(values)
        return _reduced(torch.tensor(values, dtype=torch.float64)).tolist()  # type: ignore[no-any-return]

    def any(self, claim: bool) -> bool:
        """True on all processes when it is true on one."""
        return self.sums([float(claim)])[0] > 0

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums gradients over all processes; where nobody has one, none is made. Raises PeerLostError."""
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
        """Raises TrainingError on every process when one of them holds another number (whole, below 2^32)."""
        mine, all_of_them = number * self.count, self.sums([number])[0]
        if self.any(mine != all_of_them):
            raise TrainingError(
                f"{what} differ between the {self.count} processes of this training; fix: the same hardware and packages "
                "for all, or one process (-c '{\"gpus_per_node\": 1}')"
            )

    @contextmanager
    def own_random_numbers(self, device: torch.device, *, seed: int, step: int) -> Iterator[None]:
        """Dropout of this process in this step; the common random state, which orders the rows, is left as it was."""
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
    """Waits for all processes, which find each other through a file that no earlier training used."""
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
    """Gloo would look the host's name up to find a network card, which is not always possible, and not needed here."""
    cards = psutil.net_if_addrs().items()
    loopback = next(card for card, addresses in cards if any(entry.address == "127.0.0.1" for entry in addresses))
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def checksum(tensors: Iterable[torch.Tensor]) -> int:
    """Of contents and order, below 2^32."""
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
    except RuntimeError as error:  # gloo names the peer's address, which tells nobody anything
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
