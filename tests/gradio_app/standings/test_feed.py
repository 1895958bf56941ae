"""One reading for everybody, and the last picture when MLflow is away: real stores, a real server that goes and comes back."""

import asyncio
import socket
import time

import pytest
from proven_versions import register_proven, rows
from votes_cast import Ledger, ledger_in, register_versions, vote

from gradio_app.standings.feed import StandingsFeed, StandingsReader
from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy
from mlflow_finetune_plugin.store.clients import client_for
from mlflow_finetune_plugin.votes import CastVote, Journal, Receipt, Turn, VoteSide

pytestmark = pytest.mark.store


@pytest.fixture
def ledger(tmp_path, empty_store) -> Ledger:
    return ledger_in(tmp_path, empty_store)


def looks(feed, count=1):
    async def together():
        return await asyncio.gather(*[feed.latest() for _ in range(count)])

    return asyncio.run(together())


def next_reading(feed):
    """What is seen once a further reading is due and done."""
    before = feed.readings
    while feed.readings == before:
        time.sleep(0.01)
        (glance,) = looks(feed)
    return glance


def test_a_hundred_viewers_cause_one_reading(ledger):
    ledger.cast(vote(1, left="2", right="1"))
    feed = StandingsFeed("bot", ledger.uri, interval_s=60)
    glances = looks(feed, 100)
    assert {glance.standings.pairs[0].people.candidate_wins for glance in glances} == {1}
    looks(feed, 100)
    assert feed.readings == 1


def test_a_new_vote_is_seen_after_the_interval_and_the_number_goes_up(ledger):
    feed = StandingsFeed("bot", ledger.uri, interval_s=0)
    (empty,) = looks(feed)
    assert (empty.standings.pairs, empty.fault) == ((), None)
    ledger.cast(vote(1, left="2", right="1"))
    after = next_reading(feed)
    assert after.number == empty.number + 1
    assert after.standings.pairs[0].pair == ("2", "1")
    same = next_reading(feed)
    assert same.standings is after.standings
    assert same.number == after.number
    assert same.read_at > after.read_at


def test_mlflow_away_keeps_the_last_picture_and_says_so(server, tmp_path):
    register_versions(server.uri)
    ledger = Ledger(Journal("bot", tmp_path / "votes"), server.uri)
    ledger.cast(vote(1))
    feed = StandingsFeed("bot", server.uri, interval_s=0, patience_s=60)
    (before,) = looks(feed)
    server.stop()
    away = next_reading(feed)
    assert away.standings is before.standings
    assert away.read_at == before.read_at
    assert f"the tracking server {server.uri} failed to read or write votes" in away.fault
    server.start()
    back = next_reading(feed)
    assert back.fault is None
    assert back.number > away.number > before.number


def test_a_server_that_does_not_answer_is_not_waited_for():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        feed = StandingsFeed("bot", f"http://127.0.0.1:{silent.getsockname()[1]}", patience_s=0.2)
        glances = looks(feed, 3)
        assert {glance.fault for glance in glances} == {"MLflow did not answer within 0.2 seconds"}
        assert feed.readings == 1


def test_no_model_yet_is_nobody_s_fault(tmp_path, empty_store):
    ledger = ledger_in(tmp_path, empty_store)
    (glance,) = looks(StandingsFeed("unknown", ledger.uri))
    assert (glance.fault, glance.standings.votes, glance.standings.aliases) == (None, 0, {})


def cast_between(version, other, digests):
    sides = tuple(
        VoteSide(Receipt("proven", number, digests[number], "b" * 64, f"req-{position}"), position, None, position)
        for number, position in ((version, "left"), (other, "right"))
    )
    return CastVote(Turn("t-1", "s-1", ({"role": "user", "content": "hi?"},)), sides, "left", "v-1")


@pytest.mark.parametrize(
    ("policy", "unit", "note"),
    [
        (GatePolicy(votes=VotesPolicy(unit="vote", minimum=7)), "vote", ""),
        (GatePolicy(), "voter", ""),
        (None, "voter", ""),
        (GatePolicy(votes=None), "voter", "its policy leaves votes out, so the gate does not read them"),
    ],
)
def test_a_version_is_weighed_by_the_terms_of_its_training_run(ledger, tmp_path, policy, unit, note):
    client = client_for(ledger.uri)
    digests = {"1": "1" * 64, "2": "2" * 64}
    for number in ("1", "2"):
        register_proven(client, "proven", rows(2), 1, adapter=digests[number], policy=policy)
    Ledger(Journal("proven", tmp_path / "proven"), ledger.uri).cast(cast_between("2", "1", digests))
    (standing,) = StandingsReader("proven", ledger.uri, live=True).read().pairs
    assert (standing.path.policy.unit, standing.terms_note) == (unit, note)


def test_a_policy_that_somebody_changed_is_told_and_not_used(ledger, tmp_path):
    client = client_for(ledger.uri)
    digests = {"1": "1" * 64, "2": "2" * 64}
    for number in ("1", "2"):
        register_proven(client, "proven", rows(2), 1, adapter=digests[number], policy=GatePolicy(votes=VotesPolicy()))
    run_id = client.get_model_version("proven", "2").run_id
    client.set_tag(run_id, "finetune.gate_digest", "0" * 64)
    Ledger(Journal("proven", tmp_path / "proven"), ledger.uri).cast(cast_between("2", "1", digests))
    (standing,) = StandingsReader("proven", ledger.uri, live=True).read().pairs
    assert "find out who changed it" in standing.terms_note
