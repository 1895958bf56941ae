"""Moves of aliases in processes of their own, which can be killed before any call that they make to MLflow.

The processes are forked by a server that has MLflow imported and no store open, so that one takes a second and shares no
connection with its siblings.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from mlflow import MlflowClient

from mlflow_finetune_plugin.errors import LeaseError, MoveError
from mlflow_finetune_plugin.promotion.moves.audit import Record, history
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.promotion.moves.lease import Lease, lease_name
from mlflow_finetune_plugin.promotion.moves.move import promote_version, roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import INTENT_TAG

SOURCE = "s3://nowhere/adapter"
"""Of the versions: a move must not want their files."""
Aliases = tuple[str | None, str | None]
"""Champion and previous."""


def processes() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"]
    )
    return context


def register_versions(client: MlflowClient, name: str, count: int) -> None:
    client.create_registered_model(name)
    for _ in range(count):
        client.create_model_version(name, SOURCE)


def evidence(champion: str | None, **more: Any) -> MoveEvidence:
    return MoveEvidence("promote", "d" * 64, "gain: +0.2 over the champion", champion=champion, **more)


def aliases_of(client: MlflowClient, name: str) -> Aliases:
    found = client.get_registered_model(name).aliases
    champion, previous = found.get("champion"), found.get("previous")
    return (None if champion is None else str(champion), None if previous is None else str(previous))


def moves_of(client: MlflowClient, name: str) -> list[Record]:
    return [record for record in history(client, name) if record.is_moved]


def faults_after_settling(client: MlflowClient, name: str) -> list[str]:
    """What is wrong with a model that has been settled: nothing may be."""
    return faults_in(client, name, moves_of(client, name))


def faults_in(client: MlflowClient, name: str, moves: list[Record], *, runs: int = 100) -> list[str]:
    """The same, of moves that are read already; of the ``runs`` newest ones the runs are looked at as well."""
    model = client.get_registered_model(name)
    champion, previous = aliases_of(client, name)
    faults = [f"unexplained: {move.from_version} -> {move.to_version}" for move in moves if move.kind == "unexplained"]
    if INTENT_TAG in model.tags:
        faults.append("an intent is left")
    if client.search_registered_models(f"name = '{lease_name(name)}'"):
        faults.append("a lease is left")
    if champion != (moves[0].to_version if moves else None):
        faults.append(f"champion {champion} is not what the newest record says")
    if moves and previous != moves[0].from_version:
        faults.append(f"previous {previous} is not what the newest record says")
    for later, earlier in itertools.pairwise(moves):
        if later.from_version != earlier.to_version:
            faults.append(f"a record is lost between {earlier.to_version} and {later.from_version}")
    if len(moves) <= runs and (twice := _recorded_twice(client, name)):
        faults.append(f"recorded twice: {twice}")
    for move in moves[:runs]:
        if move.run_id is None or client.get_run(move.run_id).info.status != "FINISHED":
            faults.append(f"the record {move.id} has no finished run")
    return faults


def _recorded_twice(client: MlflowClient, name: str) -> list[str]:
    experiment = client.get_experiment_by_name(f"{name}.promotions")
    runs = client.search_runs([experiment.experiment_id], max_results=5000) if experiment is not None else []
    counts = Counter(run.data.tags["finetune.move.id"] for run in runs if "finetune.move.id" in run.data.tags)
    return [move for move, count in counts.items() if count > 1]


class Killed:
    """A client whose process is killed before its call number ``at`` (from 1)."""

    def __init__(self, client: MlflowClient, at: int) -> None:
        self._client = client
        self._left = at

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **named)

        return counted


def promote(client: Any, name: str, version: str, champion: str | None) -> None:
    promote_version(client, name, version, evidence=evidence(champion))


def take_back(client: Any, name: str) -> None:
    roll_back(client, name)


def settle_left(client: Any, name: str) -> None:
    assert settle(client, name) is not None


def killed_at(
    uri: str, at: int, action: Callable[..., None], arguments: tuple[Any, ...], login: dict[str, str]
) -> None:
    """A process's whole life."""
    os.environ.update(login)
    action(Killed(MlflowClient(uri), at), *arguments)


AFTER_THE_ALIAS = 10
"""The call of a rollback in which ``previous`` is set; the alias has moved."""


def run_killed(uri: str, at: int, action: Callable[..., None], *arguments: Any) -> bool:
    """Whether it was killed; False when it made fewer calls and ended well."""
    login = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_TRACKING_")}
    process = processes().Process(target=killed_at, args=(uri, at, action, arguments, login))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return bool(process.exitcode)


def hold_in_turn(uri: str, name: str, folder: str, times: int, dies: bool) -> None:
    """Takes the lease that many times; a marker file that can only be made once is there meanwhile. May die holding it."""
    client, marker = MlflowClient(uri), os.path.join(folder, "held")
    for turn in range(times):
        while True:
            try:
                with Lease(client, name) as lease:
                    os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
                    time.sleep(random.uniform(0, 0.02))
                    lease.check()
                    os.unlink(marker)
                    with open(os.path.join(folder, "turns"), "a", encoding="ascii") as turns:
                        turns.write(f"{os.getpid()} {turn}\n")
                    if dies and turn == times - 1:
                        os.kill(os.getpid(), signal.SIGKILL)
                break
            except LeaseError:
                time.sleep(random.uniform(0.01, 0.1))


def promote_in_turn(uri: str, name: str, versions: int, times: int) -> None:
    """Promotes that many times, some version that is not champion, against whoever else does."""
    client, done = MlflowClient(uri), 0
    while done < times:
        champion = aliases_of(client, name)[0]
        version = random.choice([str(n) for n in range(1, versions + 1) if str(n) != champion])
        try:
            promote(client, name, version, champion)
            done += 1
        except MoveError:  # held by another, or the champion has moved meanwhile
            time.sleep(random.uniform(0.01, 0.1))
