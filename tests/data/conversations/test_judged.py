"""Two answers to one prompt and a column that says which is better, as published sets write it."""

import pytest
from shown_turns import read, shown

from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

ASKED = {"role": "user", "content": "q"}
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
SIDES = (["user: q", "assistant: good"], ["user: q", "assistant: bad"])
SHP = {"post_id": "a1", "domain": "askscience", "history": "q", "score_A": 5, "score_B": 2, "score_ratio": 2.5}
ARENA = {"question_id": "1", "model_a": "x", "model_b": "y", "judge": "j", "turn": 1, "language": "English"}


def numbered(first, second, names=("response_0", "response_1"), **verdict):
    return {"prompt": "q", names[0]: first, names[1]: second, **verdict}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(numbered("good", "bad", better_response_id=0, safer_response_id=1), id="PKU-SafeRLHF, first"),
        pytest.param(numbered("bad", "good", better_response_id=1, safer_response_id=0), id="PKU-SafeRLHF, second"),
        pytest.param({**SHP, "human_ref_A": "good", "human_ref_B": "bad", "labels": 1}, id="SHP, A"),
        pytest.param({**SHP, "human_ref_A": "bad", "human_ref_B": "good", "labels": 0}, id="SHP, B"),
        pytest.param(
            numbered("good", "bad", ("response_1", "response_2"), preference_strength=-2), id="HelpSteer2, first"
        ),
        pytest.param(
            numbered("bad", "good", ("response_1", "response_2"), preference_strength=1), id="HelpSteer2, second"
        ),
        pytest.param(
            {"context": [ASKED], "domain": "general", "language": "english"}
            | {"response1": "bad", "response2": "good", "overall_preference": 3, "individual_preference": []},
            id="HelpSteer3",
        ),
        pytest.param(
            {**ARENA, "winner": "model_a", "conversation_a": [ASKED, GOOD], "conversation_b": [ASKED, BAD]},
            id="chatbot_arena_conversations, a",
        ),
        pytest.param(
            {**ARENA, "winner": "model_b", "conversation_a": [ASKED, BAD], "conversation_b": [ASKED, GOOD]},
            id="chatbot_arena_conversations, b",
        ),
        pytest.param(
            numbered("bad", "good", ("response_a", "response_b"), winner_model_a=0, winner_model_b=1, winner_tie=0),
            id="lmsys arena of 2024",
        ),
        pytest.param(
            {"instruction": "q", "input": "", "output_1": "bad", "output_2": "good", "preference": 2}, id="AlpacaFarm"
        ),
        pytest.param(numbered("bad", "good", ("answer_0", "answer_1"), score_0=-1.0, score_1=1.0), id="two scores"),
        pytest.param(numbered("good", "bad", ("response_1", "response_2"), score_1=4, score_2=2), id="scores from 1"),
        pytest.param(numbered("bad", "good", ("answer_a", "answer_b"), winner="answer_b"), id="name of the column"),
    ],
)
def test_the_better_answer_is_the_one_that_the_verdict_names(row):
    (pair,) = read("pairs", row, ignore=("individual_preference",))
    assert (shown(pair.messages), shown(pair.rejected)) == SIDES
    good, bad = read("rated", row, ignore=("individual_preference",))
    assert (good.is_good, shown(good.messages)) == (True, SIDES[0])
    assert (bad.is_good, shown(bad.messages)) == (False, SIDES[1])


@pytest.mark.parametrize(
    "row",
    [
        numbered("a", "b", ("response_1", "response_2"), preference_strength=0),
        {**ARENA, "winner": "tie (bothbad)", "conversation_a": [ASKED, GOOD], "conversation_b": [ASKED, BAD]},
        numbered("a", "b", ("response_a", "response_b"), winner_model_a=0, winner_model_b=0, winner_tie=1),
        numbered("a", "b", ("answer_0", "answer_1"), score_0=0.5, score_1=0.5),
    ],
)
def test_a_tie_is_skipped_with_its_reason(row):
    with pytest.raises(RowFault, match=r"^tie: "):
        read("pairs", row)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("row", "words"),
    [
        (numbered("a", "b", better_response_id=2), "better_response_id is int 2, not 0 or 1"),
        (numbered("a", "b", winner="maybe"), "winner is str 'maybe', not response_0, response_1, a, b or tie"),
        (numbered("a", "b", winner=1), "winner is int 1, not response_0"),
        (numbered("a", "b", ("response_1", "response_2"), preference_strength="x"), "not a number"),
        (numbered("a", "b", ("response_1", "response_2"), preference_strength=float("nan")), "not a number"),
        (
            numbered("a", "b", ("response_a", "response_b"), winner_model_a=1, winner_model_b=1),
            "winner_model_a is int 1, not 0 or 1, with the opposite",
        ),
        (numbered("a", "b", better_response_id=None), "better_response_id is NoneType None, not a number"),
    ],
)
def test_a_verdict_that_cannot_be_read_is_a_fault_of_its_row(row, words):
    good = {**row, "better_response_id": 0} if "better_response_id" in row else row
    with pytest.raises(RowFault, match=words):
        read("pairs", good, row)


def test_two_answers_without_a_verdict_are_not_pairs():
    with pytest.raises(DataError, match="hold"):
        read("pairs", numbered("a", "b"))


def test_named_columns_are_read_by_the_name_of_the_verdict():
    row = {"ask": "q", "left": "bad", "right": "good", "winner": "right"}
    columns = {"prompt": "ask", "first": "left", "second": "right"}
    (pair,) = read("pairs", row, columns=columns)
    assert (shown(pair.messages), shown(pair.rejected)) == SIDES
