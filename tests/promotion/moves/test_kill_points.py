"""SIGKILL before every single call to MLflow that a move makes: then the next call settles it, to the old state or the new."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from alias_moves import (
    Aliases,
    aliases_of,
    faults_after_settling,
    moves_of,
    promote,
    register_versions,
    run_killed,
    settle_left,
    take_back,
)
from mlflow import MlflowClient

from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import INTENT_TAG

pytestmark = pytest.mark.process

MOST_CALLS = 40


def kill_everywhere(
    workplace: Any,
    prepare: Callable[[MlflowClient, str], None],
    action: tuple[Any, ...],
    *,
    old: Aliases,
    new: Aliases,
) -> list[str]:
    """What ``settle`` did at each kill point, in their order: finished, dropped or nothing."""
    client, done, name = workplace.client(), [], "bot"
    register_versions(client, name, 3)
    prepare(client, name)
    before = len(moves_of(client, name))
    act, *arguments = action
    for at in range(1, MOST_CALLS):
        uri = copy_of_the_store(workplace, at)
        client = MlflowClient(uri)
        was_killed = run_killed(uri, at, act, name, *arguments)
        champion, previous = aliases_of(client, name)
        assert champion in (old[0], new[0])
        assert previous in (old[1], new[1])
        settled = settle(client, name)
        if settled is None:
            take_what_died_away(client, name)
        assert faults_after_settling(client, name) == [], f"killed before call {at}"
        moved = len(moves_of(client, name)) - before
        assert (aliases_of(client, name), moved) in [(old, 0), (new, 1)], f"killed before call {at}"
        if not was_killed:
            assert settled is None
            assert aliases_of(client, name) == new
            return done
        done.append("nothing" if settled is None else settled.how)
    raise AssertionError(f"more than {MOST_CALLS} calls")


def copy_of_the_store(workplace: Any, at: int) -> str:
    """A store for one kill point, which takes less time than the moves that prepare it."""
    copy = workplace.path / f"before-call-{at}.db"
    shutil.copy(workplace.path / "mlflow.db", copy)
    return f"sqlite:///{copy}"


def take_what_died_away(client: MlflowClient, name: str) -> None:
    """A lease whose holder died with nothing begun stays until somebody needs it."""
    from mlflow_finetune_plugin.promotion.moves.lease import Lease

    with Lease(client, name):
        assert INTENT_TAG not in client.get_registered_model(name).tags


def nothing(client: MlflowClient, name: str) -> None:
    pass


def two_promotions(client: MlflowClient, name: str) -> None:
    promote(client, name, "1", None)
    promote(client, name, "2", "1")


@pytest.mark.fault
def test_a_first_promotion_may_be_killed_anywhere(workplace):
    done = kill_everywhere(workplace, nothing, (promote, "1", None), old=(None, None), new=("1", None))
    assert set(done) == {"nothing", "dropped", "finished"}


@pytest.mark.fault
def test_a_promotion_may_be_killed_anywhere(workplace):
    done = kill_everywhere(workplace, two_promotions, (promote, "3", "2"), old=("2", "1"), new=("3", "2"))
    assert set(done) == {"nothing", "dropped", "finished"}


@pytest.mark.fault
def test_a_rollback_may_be_killed_anywhere(workplace):
    done = kill_everywhere(workplace, two_promotions, (take_back,), old=("2", "1"), new=("1", "2"))
    assert set(done) == {"nothing", "dropped", "finished"}


def cut_off(call: str) -> Callable[[MlflowClient, str], None]:
    """A promotion of version 3 over 2, whose process was killed before this call, number 1 of its kind from the intent on."""

    def prepare(client: MlflowClient, name: str) -> None:
        two_promotions(client, name)
        calls = Recorded(client)
        uri = client.tracking_uri
        register_versions(client, f"{name}-rehearsal", 3)
        two_promotions(client, f"{name}-rehearsal")
        promote(calls, f"{name}-rehearsal", "3", "2")
        begun = calls.methods.index("set_registered_model_tag")
        assert run_killed(uri, calls.methods.index(call, begun) + 1, promote, name, "3", "2")
        assert INTENT_TAG in client.get_registered_model(name).tags

    return prepare


class Recorded:
    """A client that notes which calls are made."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self.methods: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.methods.append(name)
        return getattr(self._client, name)


@pytest.mark.fault
@pytest.mark.parametrize(
    ("call", "new", "how"),
    [("set_registered_model_alias", ("2", "1"), "dropped"), ("create_run", ("3", "2"), "finished")],
)
def test_settling_what_a_killed_process_left_may_be_killed_anywhere(workplace, call, new, how):
    """It takes the dead holder's lease over first."""
    client, done, name = workplace.client(), [], "bot"
    register_versions(client, name, 3)
    cut_off(call)(client, name)
    for at in range(1, MOST_CALLS):
        uri = copy_of_the_store(workplace, at)
        client = MlflowClient(uri)
        was_killed = run_killed(uri, at, settle_left, name)
        settled = settle(client, name)
        if settled is None:
            take_what_died_away(client, name)
        assert faults_after_settling(client, name) == [], f"killed before call {at}"
        assert aliases_of(client, name) == new
        if not was_killed:
            break
        done.append("nothing" if settled is None else settled.how)
    assert set(done) == {how, "nothing"}
