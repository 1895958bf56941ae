"""Fields of turns: read, refused by name, or counted."""

import re

import pytest

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(turns, column="messages", **settings):
    row = {column: turns}
    (conversation,) = interpret([row], ColumnSettings(**settings)).conversations(row)
    return conversation.messages


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_plan": "I look."}, "tool_plan str 'I look.' of an assistant turn: Cohere's plan before a call"),
        ({"prefix": True}, "prefix bool True of an assistant turn: the start of an answer"),
        ({"thought": "Hm."}, "write it as reasoning_content"),
        ({"candidates": ["a", "b"]}, "a turn is read as one answer"),
        ({"rejected": "b"}, "a turn is read as one answer"),
        ({"eot": False}, "a turn without an end (torchtune)"),
        ({"ipython": True}, "a tool call (torchtune)"),
        ({"label": "quality:4"}, "the attributes of an answer, which NeMo writes"),
        ({"name": "Bob"}, "name str 'Bob' of an assistant turn: the speaker"),
        ({"refusal": "No."}, "write it as the content of the turn"),
        ({"images": ["a.png"]}, "write each picture as a part of the content"),
        ({"videos": ["a.mp4"]}, "this version trains on text and pictures only"),
    ],
)
@pytest.mark.parametrize("form", ["messages", "sharegpt"])
def test_a_field_with_a_meaning_in_another_tool_is_refused_by_name(fields, words, form):
    turns = [USER, {**ASSISTANT, **fields}]
    column = "messages"
    if form == "sharegpt":
        column, turns = "conversations", [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **fields}]
    (name,) = fields
    with pytest.raises(RowFault, match=re.escape(words)) as caught:
        read(turns, column)
    assert f"data.ignore: ['[].{name}'] trains without it" in str(caught.value)
    assert read(turns, column, ignore=(f"[].{name}",)) == (USER, ASSISTANT)


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_plan": ""},
        {"prefix": False},
        {"thought": None},
        {"candidates": []},
        {"eot": True},
        {"ipython": False},
        {"label": None},
        {"name": "Assistant"},
        {"refusal": None},
        {"images": []},
        {"id": 7},
    ],
)
def test_a_field_that_says_nothing_is_no_reason_to_refuse(fields):
    assert read([USER, {**ASSISTANT, **fields}]) == (USER, ASSISTANT)


@pytest.mark.parametrize(
    "mark", [{"masked": True}, {"trainable": False}, {"loss_mask": 0}, {"loss_weight": 0}, {"weight": 0}]
)
def test_a_marked_turn_is_context(mark):
    (_, first, _, last) = read([USER, {**ASSISTANT, **mark}, USER, ASSISTANT])
    assert (first["weight"], last.get("weight")) == ("0", None)
    (_, first, _, last) = read([USER, {**ASSISTANT, **{k: not v for k, v in mark.items()}}, USER, ASSISTANT])
    assert (first.get("weight"), last.get("weight")) == (None, None)


def test_a_mark_between_and_a_learnt_user_turn_are_refused():
    with pytest.raises(RowFault, match=re.escape("loss_mask 0.5: a turn carries loss")):
        read([USER, {**ASSISTANT, "loss_mask": 0.5}])
    with pytest.raises(RowFault, match="masked 'no'"):
        read([USER, {**ASSISTANT, "masked": "no"}])
    with pytest.raises(RowFault, match="trainable true in a user turn"):
        read([{**USER, "trainable": True}, ASSISTANT])


def test_reasoning_and_calls_of_sharegpt_turns_are_read():
    call = {"function": {"name": "f", "arguments": "{}"}}
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "", "tool_calls": [call]},
        {"from": "tool", "value": "7"},
        {"from": "gpt", "value": "a", "reasoning_content": "Hm."},
    ]
    messages = read(turns, "conversations")
    assert messages[1]["tool_calls"][0]["function"]["name"] == "f"
    assert messages[3]["reasoning_content"] == "Hm."


def test_thoughts_among_geminis_parts_are_reasoning():
    parts = [{"text": "Hm. ", "thought": True}, {"text": "a"}]
    (_, answer) = read([USER, {"role": "model", "parts": parts}])
    assert answer == {"role": "assistant", "content": "a", "reasoning_content": "Hm. "}
    (_, answer) = read([USER, {"role": "model", "parts": [{**parts[0], "thought": False}, parts[1]]}])
    assert answer == {"role": "assistant", "content": "Hm. a"}


def test_fields_that_are_not_used_are_counted():
    row = {"messages": [{**USER, "toxic": False, "id": 1}, {**ASSISTANT, "id": 2, "citations": [{"start": 1}]}]}
    reading = interpret([row], ColumnSettings())
    reading.conversations(row)
    assert dict(reading.unused.counts) == {"[].id": 1, "[].citations": 1, "[].toxic": 1}
    plain = {"messages": [USER, {**ASSISTANT, "citations": []}]}
    reading.conversations(plain)
    assert reading.unused.counts["[].citations"] == 1


def test_fields_of_the_turns_of_pairs_and_prompts():
    better, worse = {**ASSISTANT, "prefix": True, "id": 7}, {**ASSISTANT, "content": "b", "id": 8}
    ignore = ("[].prefix",)
    for prompt in ([{**USER, "toxic": True}], {"messages": [{**USER, "toxic": True}]}):
        row = {"prompt": prompt, "chosen": better, "rejected": [worse]}
        with pytest.raises(RowFault, match="prefix bool True of an assistant turn"):
            interpret([row], ColumnSettings(form="pairs")).conversations(row)
        reading = interpret([row], ColumnSettings(form="pairs", ignore=ignore))
        (pair,) = reading.conversations(row)
        assert [turns[-1]["content"] for turns in (pair.messages, pair.rejected)] == ["a", "b"]
        assert dict(reading.unused.counts) == {"[].id": 1, "[].toxic": 1}
    row = {
        "prompt": [{**USER, "toxic": True}],
        "completion": [{**ASSISTANT, "id": 7}],
    }  # the completion reaches the reward
    reading = interpret([row], ColumnSettings(form="prompts"))
    assert len(reading.conversations(row)) == 1
    assert dict(reading.unused.counts) == {"[].toxic": 1}
