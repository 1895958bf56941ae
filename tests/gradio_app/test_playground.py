"""Sessions, streams and votes over a real endpoint, with a real journal and MLflow behind."""

import asyncio
import socket
import time

import pytest
from conftest import wait_for
from votes_cast import register_versions

from gradio_app import view
from gradio_app.playground import Playground
from gradio_app.prompt_walk import HELD_OUT
from gradio_app.session import Prompt, SessionError
from gradio_app.settings import PlaygroundSettings
from mlflow_finetune_plugin.votes import read_votes


@pytest.fixture
def store(desk, monkeypatch):
    """Where MLflow tracks, with two registered versions of bot."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", desk.tracking_uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(desk.tracking_uri)
    register_versions(desk.tracking_uri)
    yield desk.tracking_uri
    mlflow.set_tracking_uri(before)


def settings(endpoint, **more):
    return PlaygroundSettings((endpoint,), **more)


def run(made, act):
    async def all_of_it():
        try:
            return await act(made)
        finally:
            await made.close()

    return asyncio.run(all_of_it())


async def spoken(playground, session, prompt="hello"):
    async for _ in playground.streams.ask(session, Prompt(prompt)):
        continue
    return session.last


def test_challenger_meets_champion_and_both_answer(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        turn = await spoken(playground, session)
        return session, turn

    session, turn = run(Playground(settings(endpoint)), act)
    assert {contender.name for contender in session.contenders} == {"bot@champion", "bot@challenger"}
    assert {answer.text[-6:] for answer in turn.answers} == {" first", "second"}
    assert turn.can_be_voted_on


def test_the_fast_side_is_received_at_its_own_speed_and_shown_at_the_joint_one(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        seen = []
        start = time.monotonic()
        async for told, texts in playground.streams.ask(session, Prompt("hello")):
            fast = next(place for place, side in enumerate(told.contenders) if side.name == "fast")
            seen.append((time.monotonic() - start, told.answers[fast].length, len(texts[fast]), len(texts[1 - fast])))
        return seen

    seen = run(Playground(settings(endpoint, sides=("fast", "slow"))), act)
    early = [row for row in seen if 0.2 < row[0] < 1.2]
    assert early
    assert all(received > 250 for _, received, _, _ in early)  # 60 tokens at 400 a second are there after 0.15 s
    assert all(fast == slow for _, _, fast, slow in early)
    assert seen[-1][2] > seen[-1][3] > 100  # in the end each shows all


def test_open_a_slow_side_does_not_hold_up_the_other(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        session.is_blind = False
        start = time.monotonic()
        async for told, texts in playground.streams.ask(session, Prompt("hello")):
            fast = next(place for place, side in enumerate(told.contenders) if side.name == "fast")
            if len(texts[fast]) == told.answers[fast].length > 250:
                return time.monotonic() - start
        return None

    assert run(Playground(settings(endpoint, sides=("fast", "slow"))), act) < 0.6


@pytest.mark.parametrize("model", ["unwell", "cut", "garbage", "broken"])
def test_a_side_that_fails_fails_alone(endpoint, store, model):
    async def act(playground):
        session = await playground.session("key", None)
        return await spoken(playground, session)

    turn = run(Playground(settings(endpoint, sides=("base", model))), act)
    told = {side.name: answer.fault for side, answer in zip(turn.contenders, turn.answers, strict=True)}
    assert told["base"] is None
    assert told[model]
    assert not turn.can_be_voted_on


def test_stop_keeps_what_was_shown_and_hangs_up(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        task = asyncio.create_task(spoken(playground, session))
        await asyncio.sleep(0.6)
        playground.streams.stop(session)
        turn = await asyncio.wait_for(task, 2)
        length = [answer.length for answer in turn.answers]
        await asyncio.sleep(0.3)
        return turn, length

    turn, length = run(Playground(settings(endpoint, sides=("endless", "slow"))), act)
    assert turn.is_over
    assert [answer.length for answer in turn.answers] == length
    assert abs(length[0] - length[1]) <= 1  # blind: not even by how much has come
    assert all(answer.is_stopped for answer in turn.answers)


def test_a_listener_who_leaves_ends_the_answers(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        stream = playground.streams.ask(session, Prompt("hello"))
        await anext(stream)
        await stream.aclose()
        return session.last

    assert run(Playground(settings(endpoint, sides=("endless", "slow"))), act).is_over


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
    assert [vote.told.choice for vote in reading.votes] == ["left", "right", "tie", "both_bad"]
    assert {vote.told.voter for vote in reading.votes} != {"ann"}
    assert reading.votes[0].told.reasons == ("clear",)
    assert reading.votes[0].told.comment == "fine"


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


def test_who_cannot_be_compared_is_told_why(endpoint, store):
    async def nobody(playground):
        with pytest.raises(SessionError, match=r"cannot be reached"):
            await playground.session("key", None)

    run(Playground(settings("http://127.0.0.1:9/v1")), nobody)

    async def unknown(playground):
        with pytest.raises(SessionError, match="No model 'bot@nobody' is served"):
            await playground.session("key", None)

    run(Playground(settings(endpoint, sides=("bot@nobody", "base"))), unknown)


def test_too_many_at_once_are_told_so(endpoint, store):
    async def act(playground):
        one, two = await playground.session("one", None), await playground.session("two", None)
        task = asyncio.create_task(spoken(playground, one))
        await asyncio.sleep(0.2)
        with pytest.raises(SessionError, match="Many people are asking"):
            await spoken(playground, two)
        playground.streams.stop(one)
        await task
        await spoken(playground, two)

    run(Playground(settings(endpoint, max_streams=1, sides=("late", "base"))), act)


def test_a_session_asks_no_more_sides_than_it_may(endpoint, store):
    async def act(playground):
        with pytest.raises(SessionError, match=r"3 sides are 3 streams, and this playground allows 2"):
            await spoken(playground, await playground.session("three", None))

    run(Playground(settings(endpoint, max_streams_per_session=2, sides=("base", "fast", "slow"))), act)

    async def allowed(playground):
        await spoken(playground, await playground.session("two", None))

    run(Playground(settings(endpoint, max_streams_per_session=2, sides=("base", "fast"))), allowed)


def test_a_second_endpoint_s_models_bear_its_name(endpoint, store):
    async def act(playground):
        return await playground.served()

    served = run(Playground(PlaygroundSettings((endpoint, endpoint.replace("127.0.0.1", "localhost")))), act)
    host = endpoint.split("/")[2].replace("127.0.0.1", "localhost")
    assert served.find("base").endpoint.name != host
    assert served.find(f"base [{host}]").endpoint.name == host
    assert served.registered == ("bot",)


def test_a_shared_conversation_is_gone_when_its_person_is_forgotten(endpoint, store):
    from mlflow_finetune_plugin.votes.forgetting import forget_voter

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


def test_nothing_says_more_than_is_shown_while_answers_come(endpoint, store):
    """Export, differences, the page after a refused click: each could tell how far ahead the faster side is."""

    async def act(playground):
        session = await playground.session("key", None)
        seen = []
        async for told, texts in playground.streams.ask(session, Prompt("hello")):
            exported = [answer["content"] for answer in session.export()["turns"][0]["answers"]]
            panels = [panel[-1]["content"] for panel in view.panels(session, told)]
            seen.append((texts, exported, panels, told.answers[0].is_over or told.answers[1].is_over, told.is_over))
            with pytest.raises(SessionError, match="still coming"):
                session.votable("left")
        return seen

    seen = run(Playground(settings(endpoint, sides=("fast", "slow"))), act)
    assert any(is_one_over for _, _, _, is_one_over, _ in seen)
    for texts, exported, panels, _, is_over in seen:
        assert exported == texts
        assert panels == [text or "…" for text in texts]
        assert not is_over


def test_stopped_both_are_stopped_and_neither_says_which_was_done(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        task = asyncio.create_task(spoken(playground, session))
        await asyncio.sleep(0.7)  # the fast one has come whole by now
        playground.streams.stop(session)
        return await asyncio.wait_for(task, 2)

    turn = run(Playground(settings(endpoint, sides=("fast", "slow"))), act)
    assert [answer.is_stopped for answer in turn.answers] == [True, True]
    assert turn.is_over


def test_what_is_left_to_show_can_be_stopped(endpoint, store):
    async def act(playground):
        session = await playground.session("key", None)
        task = asyncio.create_task(spoken(playground, session))
        while not (session.last and all(answer.is_over for answer in session.last.answers)):
            await asyncio.sleep(0.01)
        playground.streams.stop(session)
        return await asyncio.wait_for(task, 0.5)

    turn = run(Playground(settings(endpoint, sides=("late", "fast"))), act)
    assert turn.is_over


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
    from gradio_app.standings_feed import StandingsReader

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


def test_a_page_that_never_comes_for_its_answers_ends_them(endpoint, store, monkeypatch):
    monkeypatch.setattr("gradio_app.streams._UNWATCHED_S", 0.3)

    async def act(playground):
        session = await playground.session("key", None)
        turn = playground.streams.start(session, Prompt("hello"))
        await asyncio.sleep(0.2)
        assert not turn.is_over
        await asyncio.sleep(0.6)
        assert turn.is_over
        assert all(answer.is_stopped and answer.length == 0 for answer in turn.answers)  # blind: nothing was shown
        return await spoken(playground, session, "again")

    assert run(Playground(settings(endpoint, sides=("slow", "base"))), act).is_over
