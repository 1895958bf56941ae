"""Sessions and votes over a real endpoint, with a real journal and MLflow behind."""

import asyncio
import socket
import time

import pytest
from comparisons import run, settings, spoken
from conftest import wait_for

from gradio_app.chat.session import Prompt, SessionError
from gradio_app.playground import Playground
from gradio_app.prompts.walk import HELD_OUT
from gradio_app.settings import PlaygroundSettings
from mlflow_finetune_plugin.votes import read_votes


def test_challenger_meets_champion_and_both_answer(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        turn = await spoken(playground, session)
        return session, turn

    session, turn = run(Playground(settings(endpoint)), act)
    assert {contender.name for contender in session.contenders} == {"bot@champion", "bot@challenger"}
    assert {answer.text[-6:] for answer in turn.answers} == {" first", "second"}
    assert turn.can_be_voted_on


def test_votes_reach_mlflow_each_once_with_their_changes(endpoint, store):
    async def act(playground):
        session = await playground.session("key", "ann")
        for choice in ("left", "right", "tie", "both_bad"):
            await spoken(playground, session, f"prompt for {choice}")
            await playground.vote(session, "tie" if choice == "left" else choice, ["clear"], " fine ")
            await playground.vote(session, choice, ["clear"], " fine ")
        ledger = playground.ledgers.open("bot")
        await asyncio.to_thread(wait_for, lambda: ledger.mirror.pending == 0, 30, "votes in MLflow")

    run(Playground(settings(endpoint)), act)
    reading = read_votes("bot")
    assert reading.not_counted == {}
    assert [vote.vote.choice for vote in reading.votes] == ["left", "right", "tie", "both_bad"]
    assert {vote.vote.voter for vote in reading.votes} != {"ann"}
    assert reading.votes[0].vote.reasons == ("clear",)
    assert reading.votes[0].vote.comment == "fine"


def test_every_turn_has_a_trace_per_side_voted_on_or_not(endpoint, store):
    import mlflow

    async def act(playground):
        session = await playground.session("key", None)
        voted = await spoken(playground, session, "first")
        await playground.vote(session, "left")
        await spoken(playground, session, "second")
        ledger = playground.ledgers.open("bot")
        await asyncio.to_thread(
            wait_for, lambda: ledger.mirror.pending + ledger.turns.pending == 0, 30, "turns in MLflow"
        )
        return voted

    voted = run(Playground(settings(endpoint)), act)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("bot.votes").experiment_id
    traces = client.search_traces(locations=[experiment])
    turns = [trace.info.tags["finetune.turn_id"] for trace in traces]
    assert len(turns) == 4
    assert turns.count(voted.turn_id) == 2
    assert sum(bool(trace.info.assessments) for trace in traces) == 2
    assert all(trace.info.token_usage for trace in traces)


def test_an_answer_that_names_itself_marks_the_vote_and_is_masked(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        shown = []
        async for _, texts in playground.streams.ask(session, Prompt("who are you?")):
            shown += texts
        return shown, await playground.vote(session, "left")

    made = Playground(settings(endpoint, sides=("boastful", "bot@challenger"), model="bot"))
    shown, cast = run(made, act)
    assert not any("challenger" in text for text in shown)
    assert cast.reasons == ("self-naming answer",)


def test_one_session_of_a_page_and_none_of_anothers_login(endpoint, store):
    async def act(playground):
        ann = await playground.session("key", "ann")
        assert await playground.session("key", "ann") is ann
        assert await playground.session("key", "bob") is not ann
        assert playground.known("key", "ann") is None

    run(Playground(settings(endpoint)), act)


@pytest.mark.bad_input
@pytest.mark.parametrize("login", ["ann", None])
def test_what_a_user_has_seen_with_names_is_not_voted_on_in_another_session(endpoint, store, login):
    """Named answers of one session, and of a shared conversation, are known in each session of the same user alone."""

    async def act(playground):
        blind = await playground.session("one", login)
        before = await spoken(playground, blind, "before")
        assert before.can_be_voted_on
        named = await playground.session("two", login)
        named.is_blind = False
        await spoken(playground, named, "before")
        assert not before.can_be_voted_on, "its names were shown in the other session meanwhile"
        for prompt in ("before", "after"):
            blind = await playground.begin("one", login, like=blind)
            named = await playground.begin("two", login, like=named)
            await spoken(playground, named, prompt)
            turn = await spoken(playground, blind, prompt)
            with pytest.raises(SessionError, match="already seen this answer with its name"):
                await playground.vote(blind, "left")
            assert not turn.can_be_voted_on
        playground.forget("one")
        blind = await playground.session("three", login)
        assert not (await spoken(playground, blind, "after")).can_be_voted_on
        other = await playground.session("four", "bob")
        assert (await spoken(playground, other, "before")).can_be_voted_on
        named = await playground.begin("two", login, like=named)
        await spoken(playground, named, "shared")
        link = await playground.share(named)
        assert await playground.shared(other, link) is not None
        other = await playground.begin("four", "bob", like=other)
        assert not (await spoken(playground, other, "shared")).can_be_voted_on

    run(Playground(settings(endpoint)), act)


def test_who_cannot_be_compared_is_told_why(endpoint, store):
    async def nobody(playground):
        with pytest.raises(SessionError, match=r"cannot be reached"):
            await playground.session("key", None)

    run(Playground(settings("http://127.0.0.1:9/v1")), nobody)

    async def unknown(playground):
        with pytest.raises(SessionError, match="No model 'bot@nobody' is served"):
            await playground.session("key", None)

    run(Playground(settings(endpoint, sides=("bot@nobody", "base"))), unknown)


def test_a_second_endpoint_s_models_bear_its_name(endpoint, store):
    async def act(playground):
        return await playground.served()

    served = run(Playground(PlaygroundSettings((endpoint, endpoint.replace("127.0.0.1", "localhost")))), act)
    host = endpoint.split("/")[2].replace("127.0.0.1", "localhost")
    assert served.find("base").endpoint.name != host
    assert served.find(f"base [{host}]").endpoint.name == host
    assert served.registered == ("bot",)


def test_a_shared_conversation_is_gone_when_its_person_is_forgotten(endpoint, store):
    from mlflow_finetune_plugin.votes.deletion import forget_voter

    async def act(playground):
        session = await playground.session("key", "ann")
        await spoken(playground, session)
        token = await playground.share(session)
        told = await playground.shared(session, token)
        assert told["turns"][0]["messages"][-1]["content"] == "hello"
        assert "champion" not in str(told)
        assert await playground.shared(session, "../../etc/passwd") is None
        assert await playground.shared(session, "x" * 32) is None
        await asyncio.to_thread(forget_voter, playground.ledgers.open("bot").journal, "ann")
        assert await playground.shared(session, token) is None

    run(Playground(settings(endpoint)), act)


def test_a_new_conversation_ends_the_answers_of_the_one_before(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        task = asyncio.create_task(spoken(playground, session))
        await asyncio.sleep(0.3)
        await playground.begin("key", None, like=session)
        return await asyncio.wait_for(task, 2)

    assert run(Playground(settings(endpoint, sides=("endless", "slow"))), act).is_over


def test_a_vote_waits_for_nobody_who_waits_for_mlflow(endpoint, store, monkeypatch):
    """A tracking server that takes a call and never answers holds those who ask for prompts, and no vote."""
    import mlflow

    async def act(playground):
        session = await playground.session("key", None)
        await spoken(playground, session)
        with socket.create_server(("127.0.0.1", 0), backlog=200) as mute:
            mlflow.set_tracking_uri(f"http://127.0.0.1:{mute.getsockname()[1]}")
            asking = [asyncio.create_task(playground.progress_in(session, HELD_OUT)) for _ in range(40)]
            await asyncio.sleep(0.5)
            start = time.monotonic()
            cast = await playground.vote(session, "left")
            took_s = time.monotonic() - start
        mlflow.set_tracking_uri(store)
        await asyncio.gather(*asking, return_exceptions=True)
        return cast, took_s

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    cast, took_s = run(Playground(settings(endpoint, sides=("bot@champion", "bot@challenger"))), act)
    assert cast.choice == "left"
    assert took_s < 1


def test_who_opens_sessions_without_end_loses_their_own_and_nobody_else_s(endpoint, store, monkeypatch):
    async def act(playground):
        ann = await playground.session("of ann", "ann")
        await spoken(playground, ann)
        first = await playground.session("bob 0", "bob")
        await spoken(playground, first)
        for number in range(1, 40):
            await playground.session(f"bob {number}", "bob")
        assert playground.known("of ann", "ann") is ann
        assert playground.known("bob 0", "bob") is first  # in which something was said
        assert playground.known("bob 1", "bob") is None
        assert playground.known("bob 39", "bob") is not None
        carol = await playground.session("of carol", "carol")
        assert playground.known("of carol", "carol") is carol

    monkeypatch.setattr("gradio_app.playground.MOST_SESSIONS", 10)
    run(Playground(settings(endpoint)), act)


def test_the_standings_do_not_tell_who_was_who_while_the_vote_may_be_changed(endpoint, store):
    from gradio_app.standings.feed import StandingsReader

    async def act(playground):
        reader = StandingsReader("bot", open_turns=playground.open_turns)
        session = await playground.session("key", "ann")
        ledger = playground.ledgers.open("bot")
        counts = []
        for after in (lambda: None, session.show_names):
            await spoken(playground, session)
            await playground.vote(session, "left")
            await asyncio.to_thread(wait_for, lambda: ledger.mirror.pending == 0, 30, "the vote in MLflow")
            after()
            counts.append((await asyncio.to_thread(reader.read)).votes)
        return counts

    assert run(Playground(settings(endpoint, sides=("bot@champion", "bot@challenger"))), act) == [0, 2]
