"""The lease on a real registry: who gets it, who may take it over, and who must stop."""

from __future__ import annotations

import os
import time

import pytest
from alias_moves import processes, run_killed

from mlflow_finetune_plugin.errors import LeaseError
from mlflow_finetune_plugin.promotion.moves import holder, lease
from mlflow_finetune_plugin.promotion.moves.holder import Holder
from mlflow_finetune_plugin.promotion.moves.lease import Lease, lease_name

pytestmark = pytest.mark.store


@pytest.fixture
def client(workplace):
    return workplace.client()


def models(client) -> list[str]:
    return sorted(model.name for model in client.search_registered_models())


def held_elsewhere(client, *, expires_in_s: float) -> Holder:
    """A lease of another machine, whose life nobody here can judge."""
    holder = Holder("e" * 32, "ann@elsewhere", 1, "another machine", time.time() + expires_in_s)
    client.create_registered_model("bot.promoting", tags=holder.to_tags())
    return holder


def test_it_leaves_nothing_in_the_registry(client):
    with Lease(client, "bot") as held:
        held.check()
        assert models(client) == ["bot.promoting"]
    assert models(client) == []


def test_who_comes_second_is_told_who_holds_it_and_until_when(client):
    with (
        Lease(client, "bot"),
        pytest.raises(LeaseError, match=rf"process {os.getpid()}\) moves .*until 20\d\d-.*Z"),
        Lease(client, "bot"),
    ):
        pass
    with Lease(client, "bot"):
        pass


def test_a_holder_elsewhere_is_waited_for_until_its_expiry_and_the_allowance_for_clocks(client):
    held_elsewhere(client, expires_in_s=-60)
    with pytest.raises(LeaseError, match="ann@elsewhere"), Lease(client, "bot"):
        pass
    with Lease(client, "bot", skew_s=30) as held:
        held.check()
        assert models(client) == ["bot.promoting", "bot.promoting." + "e" * 32]


def test_graves_go_after_an_hour(client, monkeypatch):
    held_elsewhere(client, expires_in_s=-200)
    with Lease(client, "bot"):
        pass
    assert models(client) == ["bot.promoting." + "e" * 32]
    monkeypatch.setattr(lease, "GRAVES_KEPT_S", -1.0)
    with Lease(client, "bot"):
        pass
    assert models(client) == []


def hold(client: object, name: str) -> None:
    with Lease(client, name) as held:  # type: ignore[arg-type]
        held.check()
        held.check()


@pytest.mark.fault
def test_a_holder_killed_on_this_machine_is_not_waited_for(client, workplace):
    assert run_killed(workplace.tracking_uri, 3, hold, "bot")
    assert "bot.promoting" in models(client)
    with Lease(client, "bot") as held:
        held.check()


def test_a_number_of_another_machine_says_nothing_about_its_process(client):
    gone = processes().Process(target=os.getpid)
    gone.start()
    gone.join()
    mine = Holder.of_this_process(900)
    elsewhere = Holder(mine.id, "ann@elsewhere", gone.pid, "another machine", mine.expires_s)
    assert not elsewhere.is_over(now_s=time.time(), skew_s=120)
    here = Holder(mine.id, "ann@here", gone.pid, holder._machine(), mine.expires_s)
    assert here.is_over(now_s=time.time(), skew_s=120)


def test_it_is_renewed_at_half_its_time(client):
    with Lease(client, "bot", duration_s=2) as held:
        time.sleep(1.2)
        held.check()
        time.sleep(1.2)
        held.check()  # later than the two seconds it was taken for
        tags = client.get_registered_model("bot.promoting").tags
        assert Holder.from_tags(tags).expires_s > float(tags["finetune.lease.expires"]) + 2


@pytest.mark.fault
def test_past_its_time_the_holder_stops_and_leaves_it_to_others(client):
    with Lease(client, "bot", duration_s=0.2) as held:
        time.sleep(0.3)
        with pytest.raises(LeaseError, match="expired"):
            held.check()
    assert models(client) == ["bot.promoting"]
    with Lease(client, "bot", skew_s=0):
        pass


@pytest.mark.fault
def test_a_clock_set_back_does_not_lengthen_it(client, monkeypatch):
    with Lease(client, "bot", duration_s=0.2) as held:
        real = time.time()
        monkeypatch.setattr(time, "time", lambda: real - 3600)
        time.sleep(0.3)
        with pytest.raises(LeaseError, match="expired"):
            held.check()


def test_who_was_taken_over_stops_and_does_not_end_the_later_lease(client):
    with Lease(client, "bot") as first:
        client.rename_registered_model(
            "bot.promoting", f"bot.promoting.{first._our_holder().id}"
        )  # as one that takes over does
        second = Lease(client, "bot").__enter__()
        with pytest.raises(LeaseError, match="took it over"):
            first.check()
    second.check()
    second.__exit__(None, None, None)


def test_a_late_burial_does_not_end_the_lease_that_came_after(client):
    """Somebody read a lease that was over, stalled, and goes on when another has it already."""
    over = held_elsewhere(client, expires_in_s=-200)
    with Lease(client, "bot") as held:
        late = Lease(client, "bot")
        late._bury(over)
        held.check()
        client.delete_registered_model(f"bot.promoting.{over.id}")  # and even if the grave is gone
        late._bury(over)
        held.check()


@pytest.mark.fault
def test_a_creation_whose_answer_was_lost_is_recognised(client):
    """Clients repeat a request that a server does not answer; the second time it finds its own lease."""

    class Repeats:
        def __getattr__(self, name):
            return getattr(client, name)

        def create_registered_model(self, *arguments, **named):
            client.create_registered_model(*arguments, **named)
            return client.create_registered_model(*arguments, **named)

    with Lease(Repeats(), "bot") as held:
        held.check()


def test_a_model_of_that_name_which_is_no_lease_is_left_alone(client):
    client.create_registered_model(lease_name("bot"))
    with pytest.raises(LeaseError, match="is not a lease"), Lease(client, "bot"):
        pass
    assert models(client) == ["bot.promoting"]
