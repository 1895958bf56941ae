import re

import pytest

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.errors import DataError

USER, ASSISTANT = ({"role": role, "content": role[0]} for role in ("user", "assistant"))
HUMAN, GPT = {"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}
REWRITE = "write each row as messages, with the better answer as the last turn"


def settings_of(fix):
    """Return the settings that a fix names after the entry points, as a user would write them."""
    key, values = re.fullmatch(r"data\.(\w+): [\[{](.*)[\]}] trains on the better answer alone", fix).groups()
    if key == "ignore":
        return ColumnSettings(ignore=tuple(values.split(", ")))
    return ColumnSettings(columns=dict(pair.split(": ") for pair in values.split(", ")))


@pytest.mark.parametrize(
    ("row", "shown", "fix"),
    [
        (  # TRL, text
            {"prompt": "p", "chosen": "c", "rejected": "r"},
            "preference: prompt, chosen, rejected",
            "data.columns: {prompt: prompt, completion: chosen}",
        ),
        (  # TRL, implicit prompt; Axolotl's ORPO; torchtune
            {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]},
            "preference: chosen, rejected",
            "data.columns: {messages: chosen}",
        ),
        (  # TRL, conversational
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]},
            "preference: prompt, chosen, rejected",
            "data.columns: {prompt: prompt, completion: chosen}",
        ),
        (  # HH-RLHF
            {"chosen": "\n\nHuman: h\n\nAssistant: a", "rejected": "\n\nHuman: h\n\nAssistant: b"},
            "preference: chosen, rejected",
            REWRITE,
        ),
        (  # OpenAI, Azure, Together, Fireworks
            {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [ASSISTANT]},
            "preference: input, preferred_output, non_preferred_output",
            REWRITE,
        ),
        (  # LLaMA-Factory
            {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT},
            "preference: chosen, rejected",
            REWRITE,
        ),
        (  # torchtune
            {"chosen_conversations": [USER, ASSISTANT], "rejected_conversations": [USER, ASSISTANT]},
            "preference: chosen_conversations, rejected_conversations",
            "data.columns: {messages: chosen_conversations}",
        ),
        (  # ms-swift
            {"messages": [USER, ASSISTANT], "rejected_response": "r"},
            "preference: rejected_response",
            "data.ignore: [rejected_response]",
        ),
        (
            {"question": "q", "response_j": "j", "response_k": "k"},
            "preference: question, response_j, response_k",
            "data.columns: {prompt: question, completion: response_j}",
        ),
    ],
)
def test_preference_pairs_are_recognised_and_the_fix_works(row, shown, fix):
    with pytest.raises(DataError) as caught:
        interpret([row], ColumnSettings())
    text = str(caught.value)
    assert text.startswith(f"{shown}: preference pairs cannot be used for training with sft")
    assert "fix: -e dpo, -e orpo or -e reward trains on pairs; or " in text
    if fix == REWRITE:
        assert text.endswith(fix)
        return
    assert text.endswith(f"{fix} trains on the better answer alone")
    (conversation,) = interpret([row], settings_of(text.rpartition("; or ")[2])).conversations(row)
    assert conversation.messages[-1]["role"] == "assistant"


def test_named_columns_of_a_pair_are_refused_too():
    row = {"a": "p", "b": "c", "c": "r"}
    with pytest.raises(DataError, match="preference pairs cannot be used"):
        interpret([row], ColumnSettings(columns={"prompt": "a", "chosen": "b", "rejected": "c"}))


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "p", "completion": "c", "label": False}, "label"),
        ({"messages": [USER, ASSISTANT], "label": True}, "label"),
        ({"instruction": "i", "output": "o", "kto_tag": False}, "kto_tag"),
        ({"prompt": "p", "completion": "c", "label": "false"}, "label"),
        ({"prompt": "p", "completion": "c", "label": 0}, "label"),
        ({"question": "q", "answer": "a", "label": "1"}, "label"),
        ({"messages": [USER, ASSISTANT], "label": 1.0}, "label"),
        ({"messages": [USER, ASSISTANT], "kto_tag": 0}, "kto_tag"),
        ({"prompt": "p", "completion": "c", "thumbs_up": False}, "thumbs_up"),
    ],
)
def test_rated_answers_are_refused_and_the_fix_works(row, column):
    with pytest.raises(DataError, match=rf"'{column}' rates answers as good \(true\) or bad \(false\)") as caught:
        interpret([row], ColumnSettings())
    assert f"data.ignore: [{column}]" in str(caught.value)
    assert "fix: -e kto trains on ratings; or" in str(caught.value)
    assert interpret([row], ColumnSettings(ignore=(column,))).conversations(row)


@pytest.mark.parametrize("column", ["label", "kto_tag", "thumbs_up"])
@pytest.mark.parametrize(("good", "bad"), [(True, False), (1, 0), ("true", "false")])
def test_ratings_of_later_rows_are_refused_at_the_end(column, good, bad):
    row = {"prompt": "p", "completion": "c"}
    assert_refused_at_the_end([row] * 5, [{**row, column: good}, {**row, column: bad}], f"'{column}' rates answers as")


def test_worse_answers_of_later_rows_are_refused_at_the_end():
    row = {"prompt": "p", "completion": "c"}
    words = r"'rejected' has a value in 2 of 7 rows, and holds the worse answers of preference pairs.*data.ignore: \[rejected\]"
    assert_refused_at_the_end([row] * 5, [{**row, "rejected": "r"}] * 2, words)
    reading = interpret([row], ColumnSettings(columns={"prompt": "prompt", "completion": "completion"}))
    reading.conversations({**row, "rejected": "r"})
    reading.check()  # the columns that the user named leave it out on purpose


def test_ranked_answers_of_later_rows_are_refused_at_the_end():
    row = {"instruction": "i", "output": "o"}
    words = "'output' holds two answers in 2 of 7 rows, which LLaMA-Factory ranks"
    assert_refused_at_the_end([row] * 5, [{**row, "output": ["good", "bad"]}] * 2, words)


def assert_refused_at_the_end(first, later, words):
    """Read rows that a file begins with and later ones that rate or rank answers."""
    reading = interpret(first, ColumnSettings())
    for row in [*first, *later]:
        reading.conversations(row)
    with pytest.raises(DataError, match=words):
        reading.check()


def test_a_label_that_is_a_class_is_no_rating():
    row = {"text": "t", "label": True}
    assert str(interpret([row], ColumnSettings()).layout) == "label: text -> label"
    rows = [{"prompt": "p", "completion": "c", "label": label} for label in range(3)]
    reading = interpret(rows, ColumnSettings())
    for row in rows:
        reading.conversations(row)
    reading.check()
    row = {"prompt": "p", "completion": "c", "text": "t", "label": True}
    assert str(interpret([row], ColumnSettings(layout="label", ignore=("prompt",))).layout) == "label: text -> label"


def test_ranked_answers_of_llama_factory_are_refused():
    row = {"instruction": "i", "input": "", "output": ["good", "bad"]}
    with pytest.raises(DataError, match="two answers in every row, which LLaMA-Factory ranks") as caught:
        interpret([row], ColumnSettings())
    assert "data.layout: alpaca" in str(caught.value)
    assert "-e dpo, -e orpo or -e reward trains on pairs" in str(caught.value)
    assert len(interpret([row], ColumnSettings(layout="alpaca")).conversations(row)) == 2
    assert len(interpret([{**row, "output": ["a", "b", "c"]}], ColumnSettings()).conversations(row)) == 2
    with pytest.raises(DataError, match="two answers in 1 of 2 rows, which LLaMA-Factory ranks"):
        interpret([row, {**row, "output": "good"}], ColumnSettings())


def test_rated_steps_are_refused():
    with pytest.raises(DataError, match="rate the steps of an answer"):
        interpret([{"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}], ColumnSettings())


@pytest.mark.parametrize("values", [[0.0, 1.0, 0.35], [f"{i / 100}" for i in range(20)]])
def test_numbers_that_are_not_classes_are_refused(values):
    with pytest.raises(DataError, match=r"the column 'label' holds numbers such as 0\.\d+, which are not classes"):
        interpret([{"text": "t", "label": value} for value in values], ColumnSettings())


@pytest.mark.parametrize("values", [[0.0, 1.0, 2.0], ["4.5", "5.0"] * 10, [1, 2, 3]])
def test_numbers_that_may_be_classes_are_labels(values):
    assert interpret([{"text": "t", "label": value} for value in values], ColumnSettings())


TEXT = {"text": "Good book, bad film."}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**TEXT, "labels": ["good", "bad"]}, "the column 'labels' holds lists of labels such as list ['good', 'bad']"),
        ({**TEXT, "labels": [3], "id": "a"}, "the column 'labels' holds lists of labels"),
        ({**TEXT, "labels": "['good']"}, "the column 'labels' holds lists of labels"),
        ({**TEXT, "label": ["good", "bad"]}, "the column 'label' holds lists of labels"),
        (
            {**TEXT, "toxic": 1, "insult": 0},
            "the columns insult, toxic hold 0 or 1 each, as the several labels of a row do",
        ),
        ({**TEXT, "toxic": "0", "insult": "1"}, "the columns insult, toxic hold 0 or 1 each"),
    ],
)
def test_several_labels_of_a_row_are_refused_with_the_reason(row, words):
    with pytest.raises(DataError) as caught:
        interpret([row], ColumnSettings())
    assert str(caught.value).startswith(f"{words}")
    assert "a row has one label here" in str(caught.value)
    joined = {**row, "labels_text": "bad, good"}
    reading = interpret([joined], ColumnSettings(columns={"prompt": "text", "completion": "labels_text"}))
    assert reading.conversations(joined)[0].messages[-1]["content"] == "bad, good"


def test_a_label_in_brackets_is_a_label():
    row = {**TEXT, "label": "[GOOD]"}
    assert interpret([row], ColumnSettings()).conversations(row)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": [USER], "solution": "<answer>7</answer>"}, "messages, solution"),
        ({"conversations": [HUMAN]}, "conversations"),
        ({"prompt": "p", "solution": "7"}, "prompt, solution"),
        ({"prompt": [USER], "ground_truth": "7"}, "ground_truth, prompt"),
    ],
)
def test_rows_for_rewards_are_refused_with_the_reason(row, columns):
    with pytest.raises(DataError) as caught:
        interpret([row], ColumnSettings())
    assert str(caught.value).startswith(
        f"the rows hold prompts without answers ({columns}), as training with rewards needs"
    )
    assert "fix: -e grpo or -e rloo trains on prompts with a reward; or" in str(caught.value)
    if row.get("prompt") == "p":
        assert "-P data.columns.prompt=prompt -P data.columns.completion=solution" in str(caught.value)
        assert interpret([row], ColumnSettings(columns={"prompt": "prompt", "completion": "solution"})).conversations(
            row
        )
