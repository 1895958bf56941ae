"""Rows of rated answers, in every layout that users bring, with the conversations written by hand."""

import pytest
from shown_turns import read, shown

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

SYSTEM = {"role": "system", "content": "Be kind."}
ASK = {"role": "user", "content": "Sky?"}
GOOD = {"role": "assistant", "content": "Blue."}
BAD = {"role": "assistant", "content": "Green."}
AGAIN = {"role": "user", "content": "Sea?"}
HUMAN, GPT = {"from": "human", "value": "Sky?"}, {"from": "gpt", "value": "Blue."}
ANSWERED = ["user: Sky?", "assistant: Blue."]
KIND = ["system: Be kind.", *ANSWERED]
LATER = ["user: Sky?", "(assistant): Blue.", "user: Sea?", "assistant: Blue."]


def rated(*rows, **settings):
    return [(shown(answer.messages), answer.is_good) for answer in read("rated", *rows, **settings)]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        # TRL
        ({"prompt": "Sky?", "completion": "Blue.", "label": True}, ANSWERED),
        ({"prompt": [ASK], "completion": [GOOD], "label": True}, ANSWERED),
        ({"prompt": [SYSTEM, ASK], "completion": [GOOD], "label": True}, KIND),
        ({"prompt": [ASK, GOOD, AGAIN], "completion": [GOOD], "label": True}, LATER),
        # LLaMA-Factory
        ({"instruction": "Sky?", "input": "", "output": "Blue.", "kto_tag": True}, ANSWERED),
        (
            {"instruction": "Say it.", "input": "In French.", "output": "Oui.", "kto_tag": True},
            ["user: Say it.\n\nIn French.", "assistant: Oui."],
        ),
        ({"instruction": "Sky?", "system": "Be kind.", "output": "Blue.", "kto_tag": True}, KIND),
        ({"conversations": [HUMAN, GPT], "kto_tag": True}, ANSWERED),
        ({"conversations": [HUMAN, GPT, {"from": "human", "value": "Sea?"}, GPT], "kto_tag": True}, LATER),
        # ms-swift
        ({"messages": [ASK, GOOD], "label": True}, ANSWERED),
        ({"messages": [SYSTEM, ASK, GOOD], "label": True}, KIND),
        ({"messages": [ASK, GOOD, AGAIN, GOOD], "label": True}, LATER),
        ({"messages": [ASK, GOOD], "system": "Be kind.", "label": True}, KIND),
        # others
        ({"question": "Sky?", "answer": "Blue.", "thumbs_up": True}, ANSWERED),
        ({"prompt": "Sky?", "completion": [ASK, GOOD], "label": True}, ANSWERED),
        ({"prompt": "\n\nHuman: Sky?\n\nAssistant:", "completion": "Blue.", "label": True}, ANSWERED),
    ],
)
def test_rated_answer_of_every_layout(row, turns):
    assert rated(row) == [(turns, True)]
    layout = interpret([row], ColumnSettings(form="rated")).layout  # what a plan records reads the same
    assert rated(row, layout=layout.name) == [(turns, True)]
    assert rated(row, layout=layout.name, columns=layout.columns) == [(turns, True)]


@pytest.mark.parametrize(
    ("label", "is_good"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), ("true", True), ("False", False), ("0", False)],
)
def test_ratings_are_booleans_or_0_and_1(label, is_good):
    assert rated({"prompt": "Sky?", "completion": "Blue.", "label": label}) == [(ANSWERED, is_good)]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
        {"chosen": [ASK, GOOD], "rejected": [ASK, BAD]},
        {"messages": [ASK, GOOD], "rejected_response": "Green."},
        {"instruction": "Sky?", "output": ["Blue.", "Green."]},
        {"input": {"messages": [ASK]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
    ],
)
def test_a_pair_is_a_good_and_a_bad_answer(row):
    assert rated(row) == [(ANSWERED, True), (["user: Sky?", "assistant: Green."], False)]
    assert all(answer.rejected == () for answer in read("rated", row))


def test_named_columns_and_composed_prompts():
    row = {"ask": "Sky?", "say": "Blue.", "ok": 1}
    assert rated(row, columns={"prompt": "ask", "completion": "say", "label": "ok"}) == [(ANSWERED, True)]
    assert rated({"talk": [ASK, GOOD], "ok": 0}, columns={"messages": "talk", "label": "ok"}) == [(ANSWERED, False)]
    row = {"where": "In Rome", "ask": "Sky?", "completion": "Blue.", "label": True}
    assert rated(row, prompt_template="{{ where }}: {{ ask }}") == [(["user: In Rome: Sky?", "assistant: Blue."], True)]


ROW = {"prompt": "Sky?", "completion": "Blue.", "label": True}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({**ROW, "label": 2}, "wrong type: label is int 2, not true or false"),
        ({**ROW, "label": "maybe"}, "wrong type: label is str 'maybe', not true or false"),
        ({**ROW, "label": None}, "null field: label"),
        ({"prompt": "Sky?", "completion": "Blue."}, "missing field: label"),
        ({**ROW, "completion": ""}, "empty completion: completion"),
        ({**ROW, "prompt": " "}, "empty prompt: prompt"),
        ({**ROW, "completion": [AGAIN, GOOD]}, "prompts differ"),
        ({**ROW, "completion": [ASK]}, "no assistant turn"),
        ({**ROW, "completion": [GOOD, AGAIN]}, "ends with a user turn"),
    ],
)
def test_rows_that_are_left_out(row, fault):
    reading = interpret([ROW], ColumnSettings(form="rated"))
    with pytest.raises(RowFault) as caught:
        reading.conversations(row)
    assert str(caught.value).startswith(fault)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (True, "all 3 rated answers are good.*fix: add bad answers; or -e lora trains on the good answers alone"),
        (False, "all 3 rated answers are bad.*fix: add good answers$"),
    ],
)
def test_a_file_with_one_rating_is_refused_when_it_is_read_to_its_end(label, words):
    rows = [{**ROW, "label": label}] * 3
    reading = interpret(rows, ColumnSettings(form="rated"))
    for row in rows:
        reading.conversations(row)
    with pytest.raises(DataError, match=words):
        reading.check()
    reading.conversations({**ROW, "label": not label})
    reading.check()


def test_a_file_without_a_usable_row_has_no_rating():
    reading = interpret([ROW], ColumnSettings(form="rated"))
    with pytest.raises(RowFault):
        reading.conversations({**ROW, "label": None})
    reading.check()  # the report says that no row is usable
