"""Files that do not fit an objective are refused with what it needs and the entry points that take their rows."""

import pytest
from shown_turns import read

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.errors import DataError

USER, ASSISTANT = ({"role": role, "content": f"{role}."} for role in ("user", "assistant"))
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
RATED = {"prompt": "p", "completion": "c", "label": True}
ANSWERED = {"prompt": "p", "completion": "c"}
ASKED = {"prompt": "p", "ground_truth": "7"}
NEEDS = {
    "pairs": "this objective learns from pairs of a better and a worse answer, such as prompt, chosen and rejected",
    "rated": "this objective learns from answers rated good or bad, such as prompt, completion and label, or pairs",
    "prompts": "this objective learns from prompts, such as prompt with columns for the reward",
}


@pytest.mark.parametrize(
    ("form", "row", "held", "entry_points"),
    [
        ("pairs", ANSWERED, "the columns prompt, completion hold one answer for each prompt", "-e lora"),
        ("pairs", {"messages": [USER, ASSISTANT]}, "the columns messages hold one answer for each prompt", "-e lora"),
        ("pairs", {"instruction": "i", "input": "", "output": "o"}, "hold one answer for each prompt", "-e lora"),
        ("pairs", {"text": "A document."}, "the columns text hold plain text", "-e lora"),
        ("pairs", RATED, "the columns prompt, completion, label hold answers that are rated good or bad", "-e kto"),
        ("pairs", {"messages": [USER, ASSISTANT], "label": 0}, "hold answers that are rated good or bad", "-e kto"),
        ("pairs", ASKED, "the columns prompt, ground_truth hold prompts without answers", "-e grpo or -e rloo"),
        ("pairs", {"messages": [USER]}, "the columns messages hold prompts without answers", "-e grpo or -e rloo"),
        ("rated", ANSWERED, "the columns prompt, completion hold one answer for each prompt", "-e lora"),
        ("rated", {"messages": [USER, ASSISTANT]}, "hold one answer for each prompt", "-e lora"),
        ("rated", {"text": "t", "label": "spam"}, "hold one answer for each prompt", "-e lora"),
        ("rated", ASKED, "hold prompts without answers", "-e grpo or -e rloo"),
        ("prompts", {"text": "A document."}, "the columns text hold plain text", "-e lora"),
    ],
)
def test_a_file_of_another_form_names_its_entry_points(form, row, held, entry_points):
    with pytest.raises(DataError) as caught:
        read(form, row)
    text = str(caught.value)
    assert held in text.partition(": ")[0]
    assert NEEDS[form] in text
    assert f"fix: {entry_points} takes these rows; or name the columns, data.columns: {{" in text


@pytest.mark.parametrize("form", ["pairs", "rated", "prompts"])
def test_columns_that_hold_nothing_known_are_listed(form):
    with pytest.raises(
        DataError, match=r"the columns ask, say do not hold .*fix: name the columns, data\.columns: \{prompt"
    ):
        read(form, {"ask": "Why?", "say": "So."})


def test_ranked_lists_are_refused_by_name():
    nectar = {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a", "model": "m", "rank": 1.0}]}
    feedback = {"instruction": "q", "completions": [{"response": "a", "overall_score": 7.5, "model": "m"}]}
    for form in ("pairs", "rated"):
        with pytest.raises(
            DataError, match="the column 'answers' holds several answers of each prompt with their ranks"
        ):
            read(form, nectar)
        with pytest.raises(DataError, match=r"'completions' holds.*fix: write each two answers of a prompt as a row"):
            read(form, feedback)


def test_answers_with_a_verdict_beside_them_are_refused_by_name():
    row = {"prompt": "q", "left": "a", "right": "b", "better_response_id": 1}
    with pytest.raises(
        DataError,
        match="'better_response_id' says which of two answers is better, and the columns of the answers are not clear",
    ):
        read("pairs", row)
    named = {"first": "left", "second": "right"}
    assert read("pairs", row, columns=named)[0].messages[-1]["content"] == "b"


@pytest.mark.parametrize("value", [3, -1, 4.5])
def test_ratings_in_numbers_are_refused_with_how_to_write_them(value):
    rows = [{"prompt": "q", "response": "a", "rating": value}, {"prompt": "q", "response": "b", "rating": 1}]
    with pytest.raises(
        DataError, match=r"the column 'rating' holds numbers, .* fix: write true or false, .* into a column label"
    ):
        read("rated", *rows)


@pytest.mark.parametrize(
    ("form", "row", "text"),
    [
        ("pairs", {**PAIR, "system": "s", "margin": 1.0}, "preference: system, prompt, chosen, rejected, margin"),
        ("rated", RATED, "rated: prompt, label -> completion"),
        ("rated", {"messages": [USER, ASSISTANT], "kto_tag": True}, "rated: messages, kto_tag"),
        ("pairs", {"instruction": "i", "input": "", "output": ["a", "b"]}, "ranked: instruction, input -> output"),
        ("prompts", {"question": "q", "answer": "a"}, "prompts: question, answer"),
    ],
)
def test_a_recognised_layout_is_shown_with_its_columns(form, row, text):
    assert str(interpret([row], ColumnSettings(form=form)).layout) == text


def test_rated_steps_are_refused_by_name():
    row = {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}
    with pytest.raises(DataError, match="the columns completions, labels rate the steps of an answer"):
        read("rated", row)


@pytest.mark.parametrize(
    ("form", "layout", "words"),
    [
        ("pairs", "messages", "data.layout: messages: this objective learns from pairs"),
        ("pairs", "rated", "pick one of: auto, preference, ranked, judged; -e kto takes rows of this layout"),
        ("rated", "prompts", "-e grpo or -e rloo takes rows of this layout"),
        ("prompts", "instances", "pick one of: auto, prompts, preference; -e lora takes rows of this layout"),
        (
            "pairs",
            "pears",
            "'pears' is not a known layout; fix: remove data.layout, or pick one of: auto, preference, ranked, judged",
        ),
        ("answers", "rated", "this objective learns from one answer for each prompt"),
        ("answers", "ranked", "-e dpo, -e orpo or -e reward takes rows of this layout"),
    ],
)
def test_a_layout_of_another_form_is_refused(form, layout, words):
    with pytest.raises(DataError) as caught:
        interpret([PAIR], ColumnSettings(form=form, layout=layout))
    assert words in str(caught.value)


def test_parts_of_other_forms_are_not_accepted():
    with pytest.raises(
        DataError, match=r"data\.columns: 'completion' is not a part of a layout; fix: pick from: chosen, "
    ):
        interpret([PAIR], ColumnSettings(form="pairs", columns={"completion": "chosen"}))
    with pytest.raises(
        DataError, match=r"data\.columns\.chosen: the file has no column 'chose'; did you mean 'chosen'"
    ):
        interpret([PAIR], ColumnSettings(form="pairs", columns={"chosen": "chose"}))
    with pytest.raises(DataError, match=r"data\.columns\.prompt: data\.prompt_template composes the prompt"):
        interpret([PAIR], ColumnSettings(form="pairs", columns={"prompt": "prompt"}, prompt_template="{{ prompt }}"))
    with pytest.raises(DataError, match=r"data\.ignore: 'chosen' is also in data\.columns"):
        interpret([PAIR], ColumnSettings(form="pairs", columns={"chosen": "chosen"}, ignore=("chosen",)))
