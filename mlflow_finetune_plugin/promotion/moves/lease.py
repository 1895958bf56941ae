"""The right to move the aliases of one registered model, held by one process at a time.

Basis. MLflow has no compare-and-swap on aliases, but names of registered models are a primary key: of all processes
that create ``NAME.promoting`` exactly one succeeds, on every SQL store and through REST, and the tags of the creation
are written in the same transaction. So the holder is always decided by creation. An expired lease is moved out of the
way by a rename to ``NAME.promoting.ID`` (a grave), where ID is the random id of that lease. The name of a grave also
exists once, so of all processes that bury the same lease one succeeds, and a late one cannot bury the next lease while
the grave exists. If the grave is gone, the id in the buried lease shows the mistake, and it is renamed back. A holder
releases the lease by burying it, which fails if another process has done so, and never deletes by a name that may
already belong to another process. Reads must return the last write, which is not so on a server whose ``read_db_uri``
is a lagging replica.

Clocks. The expiry is the wall-clock time (UTC) of the holder. Another process compares it with its own clock and waits
SKEW_S longer. The holder stops at its expiry by the wall clock or the monotonic clock, whichever comes first. If the
clocks differ by more than SKEW_S, a lease can be taken from a live holder. Its next ``check`` then refuses, so at most
one write that has already passed its check can still happen. A holder that was killed on this machine, in this process
namespace, is known to be dead and is not waited for (Linux; elsewhere the expiry decides).
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import LeaseError, one_line
from mlflow_finetune_plugin.promotion.moves.holder import Holder, renewal_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

DURATION_S = 900.0
SKEW_S = 120.0
GRAVES_KEPT_S = 3600.0
_TRIES = 20


def lease_name(name: str) -> str:
    """Return the name of the registered model that represents the lease of ``name``."""
    return f"{name}.promoting"


class Lease:
    """``with Lease(client, name) as lease: ... lease.check() ...``.

    Entering raises LeaseError if another process holds the lease, and ``check`` if this process has lost it. The
    registry's exceptions are passed on. Not for use by several threads.
    """

    def __init__(
        self, client: MlflowClient, name: str, *, duration_s: float = DURATION_S, skew_s: float = SKEW_S
    ) -> None:
        self.name = name
        self.model = lease_name(name)
        self.duration_s = duration_s
        self._client = client
        self._skew_s = skew_s
        self._holder: Holder | None = None
        self._deadline_s = 0.0  # monotonic

    def __enter__(self) -> Lease:
        for _ in range(_TRIES):
            if self._create():
                return self
            holder = self._read()
            if holder is None:
                continue  # released at this moment
            if not holder.is_over(now_s=time.time(), skew_s=self._skew_s):
                raise self._held(holder)
            self._bury(holder)
        raise LeaseError(f"{self.name}: others take its lease again and again; fix: try again when they are done")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._release()
            self._remove_old_graves()
        except MlflowException as refusal:  # the move is made or has its own error; a lease that is left ends by itself
            logger.warning("the lease %s could not be given back: %s", self.model, one_line(refusal))

    def check(self) -> None:
        """Check, directly before every write, that the lease is still held, and renew it after half of its time.

        Raises:
            LeaseError: The lease was lost.
        """
        if self._is_past():
            raise self._lost("it expired before the move was done")
        self._check_held()
        if self._deadline_s - time.monotonic() < self.duration_s / 2:
            self.renew()

    def renew(self) -> None:
        """Extend the lease by its full duration from now. Raises LeaseError if it was lost."""
        holder = self._our_holder()
        began_s, expires_s = time.monotonic(), time.time() + self.duration_s
        self._client.set_registered_model_tag(self.model, renewal_tag(holder.id), f"{expires_s:.3f}")
        self._check_held()
        self._holder = Holder(holder.id, holder.owner, holder.pid, holder.machine, expires_s)
        self._deadline_s = began_s + self.duration_s

    def _create(self) -> bool:
        from mlflow.exceptions import MlflowException

        began_s, mine = time.monotonic(), Holder.of_this_process(self.duration_s)
        tags, description = mine.to_tags(), f"Lease of {self.name}: an alias is being moved by {mine.owner}."
        try:
            self._client.create_registered_model(self.model, tags=tags, description=description)
        except MlflowException as error:
            # the store looks at what exists to say so, and may find it released
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
            holder = self._read()
            if holder is None or holder.id != mine.id:
                return False  # else: a repeated request, whose first answer was lost on its way
        self._holder, self._deadline_s = mine, began_s + self.duration_s
        return True

    def _read(self, model: str | None = None) -> Holder | None:
        """Return the holder; None without a lease. Raises LeaseError for a registered model of that name that is not a
        lease.
        """
        from mlflow.exceptions import MlflowException

        model = model or self.model
        try:
            tags = self._client.get_registered_model(model).tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        holder = Holder.from_tags(tags)
        if holder is None:
            raise LeaseError(
                f"registered model {model!r} is not a lease, and moves of {self.name!r} need one of that name; fix: rename it"
            )
        return holder

    def _bury(self, over: Holder) -> None:
        """Rename an expired lease out of the way, unless another process was faster."""
        from mlflow.exceptions import MlflowException

        grave = f"{self.model}.{over.id}"
        try:
            self._client.rename_registered_model(self.model, grave)
        except MlflowException as error:
            if _is_taken_or_gone(error):
                return
            if error.error_code == "PERMISSION_DENIED":
                raise LeaseError(
                    f"{self.name}: {over.owner} (process {over.pid}) left a lease behind, which you may not end; fix: let "
                    f"{over.owner.partition('@')[0]} call again, or an administrator delete the registered model {self.model!r}"
                ) from error
            raise
        buried = self._read(grave)
        if buried is None or buried.id == over.id:
            return
        try:  # a late burial: its grave was gone, and the next lease went into it
            self._client.rename_registered_model(grave, self.model)
        except MlflowException as error:
            if not _is_taken_or_gone(error):
                raise

    def _release(self) -> None:
        """Bury the lease and delete its grave. An expired lease is left for other processes to bury."""
        from mlflow.exceptions import MlflowException

        if self._is_past():
            return
        grave = f"{self.model}.{self._our_holder().id}"
        try:
            self._client.rename_registered_model(self.model, grave)
            self._client.delete_registered_model(grave)
        except MlflowException as error:
            if not _is_taken_or_gone(error):
                raise

    def _remove_old_graves(self) -> None:
        """Delete the graves that no process can still try to bury."""
        from mlflow.exceptions import MlflowException

        prefix = f"{self.model}."
        quote = '"' if "'" in prefix else "'"
        oldest = self._client.search_registered_models(
            f"name LIKE {quote}{prefix}%{quote}", max_results=10, order_by=["last_updated_timestamp ASC"]
        )
        for model in oldest:
            age_s = time.time() - (model.last_updated_timestamp or model.creation_timestamp) / 1000
            if not model.name.startswith(prefix) or Holder.from_tags(model.tags) is None or age_s < GRAVES_KEPT_S:
                continue
            try:
                self._client.delete_registered_model(model.name)
            except MlflowException as error:
                if error.error_code not in (
                    "PERMISSION_DENIED",
                    "RESOURCE_DOES_NOT_EXIST",
                ):  # another's; another was first
                    raise

    def _check_held(self) -> None:
        holder = self._read()
        if holder is None or holder.id != self._our_holder().id:
            raise self._lost(
                "it was ended" if holder is None else f"{holder.owner} (process {holder.pid}) took it over"
            )

    def _is_past(self) -> bool:
        return time.monotonic() >= self._deadline_s or time.time() >= self._our_holder().expires_s

    def _our_holder(self) -> Holder:
        if self._holder is None:
            raise LeaseError(f"{self.name}: its lease was not taken; fix: with Lease(...) as lease")
        return self._holder

    def _held(self, holder: Holder) -> LeaseError:
        until = datetime.fromtimestamp(holder.expires_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return LeaseError(
            f"{self.name}: {holder.owner} (process {holder.pid}) moves its aliases, until {until} at the latest; fix: wait for "
            f"that, or, if that process is gone, delete the registered model {self.model!r}"
        )

    def _lost(self, why: str) -> LeaseError:
        return LeaseError(
            f"{self.name}: the lease was lost: {why}; nothing is written any more; fix: call again, which settles what was begun"
        )


def _is_taken_or_gone(error: Any) -> bool:
    """Return whether a rename failed because another process was faster. The SQL store reports BAD_REQUEST for a
    vanished row.
    """
    return error.error_code in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST") or (
        error.error_code == "BAD_REQUEST" and "0 were matched" in str(error)
    )
