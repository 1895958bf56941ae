"""What the compare page says, and what it keeps to itself."""

import json
import random
import re
from html import unescape

import pytest

from gradio_app.chat import html as view
from gradio_app.chat.client import Endpoint
from gradio_app.chat.session import Contender, Prompt, Session
from mlflow_finetune_plugin.votes import CastVote, Receipt, Turn, VoteSide

HERE = Endpoint("http://127.0.0.1:7777/v1")
ONE, TWO = Contender("bot@champion", HERE, "bot@champion"), Contender("bot@challenger", HERE, "bot@challenger")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def answered(*, fault=None, texts=("first words", "second words"), reference=None):
    session = Session((ONE, TWO), _random=random.Random(3))
    turn = session.begin(Prompt(f"why {HOSTILE}", reference=reference))
    for place, (answer, text) in enumerate(zip(turn.answers, texts, strict=True)):
        answer.started_at, answer.started_at_ms = 0.0, 1
        answer.add(text)
        answer.first_at, answer.ended_at, answer.completion_tokens = 0.25, 1.25, 11
        answer.receipt = Receipt("bot", str(place + 7), "d" * 64, "e" * 64, f"req-{place}")
    if fault is not None:
        turn.answers[0].fault, turn.answers[0].fault_detail = fault, "bot/7 at 127.0.0.1:7777 is not well"
    return session, turn


def cast(session, turn, choice="left"):
    sides = tuple(
        VoteSide(answer.receipt, answer.text, None, position)
        for answer, position in zip(turn.answers, ("left", "right"), strict=True)
    )
    turn.vote = CastVote(Turn(turn.turn_id, session.session_id, turn.messages), sides, choice, "v")


def all_of(session, turn):
    """Everything that the page shows of a session."""
    shown = [json.dumps(view.panels(session, turn)), view.status(session), view.history_view(session)]
    shown += [view.side_line(turn, 0), view.side_line(turn, 1), view.difference_view(turn), view.reference_view(turn)]
    return " ".join([*shown, view.state("", view.controls(session))])


@pytest.mark.parametrize("fault", [None, "refused the request (HTTP 500)"])
def test_a_blind_turn_says_nothing_of_who_or_how_fast(fault):
    session, turn = answered(fault=fault)
    if fault is None:
        cast(session, turn)
    said = all_of(session, turn)
    for secret in ("champion", "challenger", "dddd", "eeee", "req-", "7777", "tokens/s", "ms", "bot"):
        assert secret not in re.sub(r"</?\w+[^>]*>", "", said.replace("items", "")), secret


def test_shown_names_come_with_receipts_and_figures():
    session, turn = answered()
    cast(session, turn)
    session.show_names()
    line = view.side_line(turn, 0)
    for told in (turn.contenders[0].name, "bot/7", "dddddddddddd", "req-0", "250 ms", "10.0 tokens/s"):
        assert told in line


def test_a_fault_is_told_in_general_first_and_in_detail_with_the_names():
    session, turn = answered(fault="refused the request (HTTP 500)")
    assert "is not well" not in json.dumps(view.panels(session, turn))
    assert "This side refused the request (HTTP 500)." in view.panels(session, turn)[0][-1]["content"]
    session.show_names()
    assert "is not well" in json.dumps(view.panels(session, turn))


def test_texts_of_others_never_become_html():
    session, turn = answered(texts=(HOSTILE, "other"), reference=HOSTILE)
    cast(session, turn)
    session.show_names()
    told = session.export()
    for html in (
        view.difference_view(turn),
        view.history_view(session),
        view.reference_view(turn),
        view.shared_view(told),
        view.notice(HOSTILE),
        view.share_notice(f'"{HOSTILE}'),
        view.soft(HOSTILE),
    ):
        assert "<script" not in html
        assert "<img" not in html


def test_the_reference_waits_for_the_vote():
    session, turn = answered(reference="the right one")
    assert "the right one" not in view.reference_view(turn)
    cast(session, turn)
    assert "the right one" in view.reference_view(turn)


@pytest.mark.parametrize("choice", ["left", "right", "tie", "both_bad"])
def test_every_choice_is_said_in_words(choice):
    session, turn = answered()
    cast(session, turn, choice)
    assert view.CHOICES[choice] in view.status(session)


def controls(session):
    found = re.search(r'data-mf="([^"]*)"', view.state("", view.controls(session)))
    return json.loads(unescape(found[1]))


def test_what_may_be_pressed():
    session, turn = answered()
    assert controls(session)["can_vote"]
    assert not controls(session)["can_show_names"]
    cast(session, turn)
    assert controls(session) == {
        "sides": 2,
        "is_speaking": False,
        "can_vote": True,
        "voted": "left",
        "can_show_names": True,
        "has_turn": True,
        "takes_pictures": False,
    }
    session.show_names()
    assert not controls(session)["can_vote"]
    session, turn = answered(fault="broke off its answer")
    assert not controls(session)["can_vote"]
    assert controls(session)["can_show_names"]
