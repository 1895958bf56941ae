"""Answers on their way: received as they come, shown at a turn's pace, ended when nobody looks. Over a real endpoint."""

import asyncio
import itertools
import time

import pytest
from comparisons import run, settings, spoken

from gradio_app.chat import html as view
from gradio_app.chat.session import Prompt, SessionError
from gradio_app.chat.update_interval import UpdateInterval
from gradio_app.playground import Playground


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


@pytest.mark.fault
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


def test_too_many_at_once_are_told_so(endpoint, store):
    async def act(playground):
        one, two = await playground.session("one", None), await playground.session("two", None)
        task = asyncio.create_task(spoken(playground, one))
        await asyncio.sleep(0.2)
        with pytest.raises(SessionError, match="Many people are using"):
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


def test_nothing_says_more_than_is_shown_while_answers_come(endpoint, store):
    """Export, differences, the page after a refused click: each could tell how far ahead the faster side is."""

    async def act(playground):
        session = await playground.session("key", None)
        seen = []
        async for told, texts in playground.streams.ask(session, Prompt("hello")):
            exported = [answer["content"] for answer in session.export()["turns"][0]["answers"]]
            panels = [panel[-1]["content"] for panel in view.panels(session, told)]
            seen.append((texts, exported, panels, told.answers[0].is_over or told.answers[1].is_over, told.is_over))
            with pytest.raises(SessionError, match="still arriving"):
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


def test_a_page_that_never_comes_for_its_answers_ends_them(endpoint, store, monkeypatch):
    monkeypatch.setattr("gradio_app.chat.streams._UNWATCHED_S", 0.3)

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


class Seldom(UpdateInterval):
    """Of an app that is busy: a page is told once a second."""

    interval_s = 1.0


async def told_at(playground, *, is_blind):
    """When the page was told, how much of each side, and the turn; times as the answers' own."""
    playground.streams._update_interval = Seldom()
    session = await playground.session("key", None)
    session.is_blind = is_blind
    seen = []
    async for _, texts in playground.streams.ask(session, Prompt("hello")):
        seen.append((time.monotonic(), [len(text) for text in texts]))
    return session.last, seen


def test_a_side_that_ends_is_shown_whole_at_once_however_busy_the_app_is(endpoint, store):
    turn, seen = run(Playground(settings(endpoint, sides=("fast", "slow"))), lambda made: told_at(made, is_blind=False))
    fast = next(place for place, side in enumerate(turn.contenders) if side.name == "fast")
    whole = next(at for at, lengths in seen if lengths[fast] == turn.answers[fast].length)
    assert whole - turn.answers[fast].ended_at < 0.2


def test_blind_nothing_happens_when_the_faster_side_ends(endpoint, store):
    turn, seen = run(Playground(settings(endpoint, sides=("fast", "slow"))), lambda made: told_at(made, is_blind=True))
    between = [later[0] - earlier[0] for earlier, later in itertools.pairwise(seen[:-1])]
    assert min(between, default=1.0) > 0.95, "only the end is told out of turn"
    assert min(answer.ended_at for answer in turn.answers) < seen[1][0]


def test_blind_answers_of_one_length_are_shown_soon_after_their_last_word_however_busy_the_app_is(endpoint, store):
    turn, seen = run(
        Playground(settings(endpoint, sides=("steady", "even"))), lambda made: told_at(made, is_blind=True)
    )
    assert turn.answers[0].length == turn.answers[1].length
    assert seen[-1][0] - max(answer.ended_at for answer in turn.answers) < 0.9
