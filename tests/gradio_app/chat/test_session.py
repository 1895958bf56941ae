"""The rules of a comparison."""

import random
from collections import Counter

import pytest

from gradio_app.chat.client import Endpoint, SamplingSettings
from gradio_app.chat.session import Contender, Prompt, Session, SessionError
from mlflow_finetune_plugin.votes import CastVote, Receipt, Turn, VoteSide

HERE = Endpoint("http://127.0.0.1:1/v1")
ONE, TWO, THREE = (Contender(name, HERE, name) for name in ("bot@champion", "bot@challenger", "base"))


def session(*contenders, **more):
    return Session(contenders or (ONE, TWO), _random=random.Random(7), **more)


def answered(turn, *texts):
    for answer, text in zip(turn.answers, texts or ("left text", "right text"), strict=True):
        if text:
            answer.add(text)
        answer.ended_at = 1.0
    return turn


def ask(of, text="hello", *texts):
    return answered(of.begin(Prompt(text)), *texts)


def vote(of, choice):
    turn = of.votable(choice)
    sides = (
        VoteSide(receipt("r-l"), turn.answers[0].text, None, "left"),
        VoteSide(receipt("r-r"), turn.answers[1].text, None, "right"),
    )
    turn.vote = CastVote(Turn(turn.turn_id, of.session_id, turn.messages), sides, choice, "v-1")
    return turn


def receipt(request):
    return Receipt("bot", "1", "a" * 64, "b" * 64, request)


def test_sides_change_places_before_every_prompt_evenly():
    of = session(max_turns=2000)
    first = Counter(ask(of).order for _ in range(1000))
    assert set(first) == {(0, 1), (1, 0)}
    assert 430 < first[0, 1] < 570


def test_sides_keep_their_places_in_a_session_when_asked_to():
    of = session(shuffle="session")
    assert len({ask(of).order for _ in range(30)}) == 1


def test_open_sides_stand_as_they_were_chosen():
    of = session(is_blind=False)
    assert {ask(of).order for _ in range(10)} == {(0, 1)}


def test_both_are_asked_the_same_after_the_preferred_answer():
    of = session(system_prompt="be brief")
    ask(of, "first", "from the left", "from the right")
    vote(of, "right")
    turn = of.begin(Prompt("second"))
    assert turn.messages == (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "from the right"},
        {"role": "user", "content": "second"},
    )


def test_without_a_preference_a_coin_decides_and_both_come_up():
    taken = Counter()
    for seed in range(60):
        of = Session((ONE, TWO), _random=random.Random(seed))
        taken[ask(of).continued_from] += 1
    assert min(taken[0], taken[1]) > 15


def test_a_turn_that_nobody_answered_is_no_part_of_the_conversation():
    of = session()
    turn = of.begin(Prompt("lost"))
    for answer in turn.answers:
        answer.fault, answer.ended_at = "cannot be reached", 1.0
    assert of.begin(Prompt("next")).messages == ({"role": "user", "content": "next"},)


def test_a_failed_side_is_not_gone_on_from():
    of = session()
    turn = ask(of, "hello", "half an ans", "whole answer")
    turn.answers[0].fault = "broke off its answer"
    assert turn.continued_from == 1


@pytest.mark.parametrize("choice", ["left", "right", "tie", "both_bad"])
def test_a_vote_can_be_changed_until_names_are_shown(choice):
    of = session()
    ask(of)
    vote(of, "left")
    vote(of, choice)
    of.show_names()
    of.votable(choice)  # the same again: reasons may be added
    other = "tie" if choice != "tie" else "left"
    with pytest.raises(SessionError, match="your vote on this turn is final"):
        of.votable(other)


def test_names_are_shown_after_the_vote_only():
    of = session()
    turn = ask(of)
    with pytest.raises(SessionError, match="Vote first"):
        of.show_names()
    vote(of, "tie")
    assert turn.hides_names
    of.show_names()
    assert not turn.hides_names


def test_earlier_turns_stay_blind_until_names_are_asked_for_and_places_are_thrown_anew_then():
    of = session(shuffle="session")
    ask(of, "first")
    vote(of, "left")
    ask(of, "second")
    ask(of, "third")
    vote(of, "tie")
    assert [turn.hides_names for turn in of.turns] == [True, True, True]
    assert len({turn.order for turn in of.turns}) == 1
    of.show_names()
    assert [turn.hides_names for turn in of.turns] == [False, True, False], "the second was not voted on"
    after = Counter()
    for _ in range(40):
        ask(of, "next")
        vote(of, "left")
        of.show_names()
        after[of.last.order] += 1
    assert len(after) == 2


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda of: of.turns.clear(), "Send a prompt first"),
        (lambda of: setattr(of.last.answers[0], "ended_at", None), "still arriving"),
        (lambda of: setattr(of.last.answers[0], "fault", "broke off"), "did not answer completely"),
        (lambda of: setattr(of.last.answers[1], "is_stopped", True), "did not answer completely"),
        (lambda of: setattr(of.last, "is_blind", False), "need hidden names"),
        (lambda of: setattr(of.last, "are_names_shown", True), "already shown"),
    ],
)
def test_there_is_no_vote_on_what_is_not_fair(spoil, why):
    of = session()
    ask(of)
    spoil(of)
    with pytest.raises(SessionError, match=why):
        of.votable("left")


def test_a_model_that_ended_without_a_word_has_answered_and_one_whose_end_nobody_told_has_not():
    of = session()
    silent = ask(of, "hello", "", "right text")
    with pytest.raises(SessionError, match="did not answer completely"):
        of.votable("right")
    silent.answers[0].finish_reason = "stop"
    vote(of, "right")
    of.show_names()
    of.undo()
    again = ask(of, "hello", "", "another text")
    again.answers[0].finish_reason = "stop"
    assert again.is_known_by_name, "its silence was seen with its name"


def test_where_nobody_keeps_votes_that_is_known_before_one_is_cast():
    of = session(keeps_votes=False)
    turn = ask(of)
    assert not turn.can_be_voted_on
    with pytest.raises(SessionError, match="no registered model in common"):
        of.votable("left")
    of.show_names()
    assert not turn.hides_names


def test_three_sides_are_compared_and_not_voted_on():
    of = session(ONE, TWO, THREE)
    ask(of, "hello", "a", "b", "c")
    with pytest.raises(SessionError, match="exactly two sides"):
        of.votable("left")


@pytest.mark.parametrize(
    ("prompt", "more", "why"),
    [
        ("   ", {}, "Write a prompt"),
        ("x" * 101, {"max_prompt_chars": 100}, "101 characters; the limit is 100"),
        ("x", {"max_turns": 0}, "limit of 0 turns"),
    ],
)
def test_what_cannot_be_asked_changes_nothing(prompt, more, why):
    of = session(**more)
    with pytest.raises(SessionError, match=why):
        of.begin(Prompt(prompt))
    assert of.turns == []


def test_one_prompt_at_a_time():
    of = session()
    of.begin(Prompt("one"))
    with pytest.raises(SessionError, match="still arriving"):
        of.begin(Prompt("two"))
    with pytest.raises(SessionError, match="still arriving"):
        of.undo()


def test_undo_takes_the_turn_out_of_the_conversation():
    of = session()
    ask(of, "one")
    ask(of, "two")
    assert of.undo().prompt.text == "two"
    assert [message["content"] for message in of.begin(Prompt("three")).messages][-1] == "three"
    assert all(message["content"] != "two" for message in of.last.messages)


def test_sides_have_settings_of_their_own_only_while_names_are_open():
    own = {1: SamplingSettings(temperature=1.0)}
    assert ask(session(is_blind=False, own_samplings=own)).samplings == (
        SamplingSettings(),
        SamplingSettings(temperature=1.0),
    )
    assert ask(session(own_samplings=own)).samplings == (SamplingSettings(), SamplingSettings())


def test_a_blind_turn_is_exported_without_anything_that_says_who():
    of = session()
    ask(of, "hello", "I am bot@champion", "no idea")
    told = str(of.export())
    assert "champion" not in told
    assert "challenger" not in told
    assert set(of.export()["turns"][0]["answers"][0]) == {"side", "content"}
    vote(of, "left")
    of.show_names()
    assert "champion" in str(of.export())


def test_a_prompt_of_a_set_may_bring_its_own_conversation():
    of = session()
    ask(of, "before")
    messages = ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
    assert of.begin(Prompt("q", messages=messages)).messages == messages


def test_a_conversation_goes_on_from_a_prompt_of_a_set():
    of = session(system_prompt="be brief")
    ask(of, "before")
    answered(of.begin(Prompt("q", messages=({"role": "user", "content": "q"},))), "same", "same")
    assert [message["content"] for message in of.begin(Prompt("more")).messages] == ["be brief", "q", "same", "more"]


def test_places_that_were_told_are_not_kept_for_the_next_prompt():
    """Sides that keep their places: once one turn is named, so would be all that follow."""
    of = session(shuffle="session", max_turns=500)
    kept = ask(of, "one")
    vote(of, "left")
    after_vote = ask(of, "two")
    assert after_vote.order == kept.order
    assert kept.hides_names  # going on tells nothing
    vote(of, "right")
    of.show_names()
    assert not kept.hides_names
    orders = set()
    for number in range(40):
        orders.add(ask(of, f"three {number}").order)
        vote(of, "tie")
        of.show_names()
    assert orders == {(0, 1), (1, 0)}


def test_an_answer_seen_with_its_name_is_not_voted_on_again():
    of = session()
    ask(of, "hello", "from one", "from two")
    vote(of, "left")
    of.show_names()
    of.votable("left")  # reasons may be added
    again = answered(of.begin(of.undo().prompt), "from two", "from one")
    assert not again.can_be_voted_on
    with pytest.raises(SessionError, match="seen this answer with its name"):
        of.votable("left")
    of = of.successor(None)
    ask(of, "hello", "from one", "something new")
    with pytest.raises(SessionError, match="seen this answer with its name"):
        of.votable("right")
    ask(of.successor(None), "hello", "new", "newer")
    of = of.successor(None)
    ask(of, "another prompt", "from one", "from two")
    assert of.votable("left")


def test_an_answer_seen_while_names_were_open_is_not_voted_on():
    of = session(is_blind=False)
    ask(of, "hello", "from one", "from two")
    of = of.successor(None)
    of.is_blind = True
    ask(of, "hello", "from one", "from two")
    with pytest.raises(SessionError, match="seen this answer with its name"):
        of.votable("left")


def test_earlier_answers_that_name_themselves_stay_masked_while_blind():
    of = session(shuffle="session")
    ask(of, "who are you", "I am bot@champion", "I am bot@champion")
    turn = ask(of, "and now")
    assert "champion" not in str(turn.visible_messages())
    assert "champion" in str(turn.messages)
    assert "champion" not in str(of.export())
    vote(of, "left")
    of.show_names()
    assert "champion" in str(turn.visible_messages())
