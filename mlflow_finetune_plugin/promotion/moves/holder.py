"""The holder of a lease, stored as tags, and whether its process has ended."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.store.names import LEASE_TAG
from mlflow_finetune_plugin.store.people import who_moves


def renewal_tag(lease_id: str) -> str:
    """Return the tag for a later expiry of a lease. It contains the lease's id, so that a late renewal cannot extend
    the next lease.
    """
    return f"{LEASE_TAG}renewed.{lease_id}"


@dataclass(frozen=True)
class Holder:
    """The holder of a lease. ``expires_s`` is in epoch seconds (UTC). ``machine`` is empty if it is unknown."""

    id: str
    owner: str
    pid: int
    machine: str
    expires_s: float

    @classmethod
    def of_this_process(cls, duration_s: float) -> Holder:
        return cls(uuid.uuid4().hex, who_moves(), os.getpid(), _machine(), time.time() + duration_s)

    def to_tags(self) -> dict[str, str]:
        return {
            f"{LEASE_TAG}id": self.id,
            f"{LEASE_TAG}owner": self.owner,
            f"{LEASE_TAG}pid": str(self.pid),
            f"{LEASE_TAG}machine": self.machine,
            f"{LEASE_TAG}expires": f"{self.expires_s:.3f}",
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Holder | None:
        """Return None for a registered model that is not a lease."""
        try:
            lease_id = tags[f"{LEASE_TAG}id"]
            expires_s = float(tags.get(renewal_tag(lease_id), tags[f"{LEASE_TAG}expires"]))
            return cls(
                lease_id,
                tags[f"{LEASE_TAG}owner"],
                int(tags[f"{LEASE_TAG}pid"]),
                tags[f"{LEASE_TAG}machine"],
                expires_s,
            )
        except (KeyError, ValueError):
            return None

    def is_over(self, *, now_s: float, skew_s: float) -> bool:
        return now_s > self.expires_s + skew_s or self._has_died()

    def _has_died(self) -> bool:
        """Return True only if it is certain: a process of this machine and process namespace that has ended."""
        import psutil

        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except ProcessLookupError:
            return True
        except (PermissionError, psutil.Error):
            return False


def _machine() -> str:
    """Return the kernel's boot id and the process namespace; empty outside Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
