"""Answers of chats have the text of the proof, also when they arrive in pieces."""

from __future__ import annotations

import itertools
import json
import random

import pytest

from mlflow_finetune_plugin.evaluation.answer_text import answer_text
from mlflow_finetune_plugin.serving.router.answering.answer_texts import AnswerStream, AnswerTexts

THINK = "<think>\n\n</think>"
WRITTEN = [
    "",
    " ",
    " HUM",
    "HUM \n",
    "a  b \n c",
    THINK,
    f"\n{THINK}\n\nham \n",
    f"{THINK} {THINK} x",
    "<think>",
    "<th ink> ",
    "\ufffd a \ufffd",
    "<\ufffd",
]


@pytest.mark.parametrize("prefix", ["", THINK, f"{THINK}\n\n", "a"])
@pytest.mark.parametrize("written", WRITTEN)
def test_pieces_join_to_the_text_of_the_whole(written, prefix):
    draw = random.Random(7)
    for _ in range(50):
        cuts = sorted(draw.choices(range(len(written) + 1), k=4))
        stream = AnswerStream(prefix)
        pieces = [stream.feed(written[a:b]) for a, b in itertools.pairwise([0, *cuts, len(written)])]
        assert "".join(pieces) + stream.finish() == answer_text(written, prefix)


def test_text_is_sent_as_soon_as_it_is_known_to_be_part_of_the_answer():
    stream = AnswerStream(THINK)
    assert [stream.feed(piece) for piece in ("<think>", "\n\n</think>", "\n", "ham", " ", "and")] == [
        *("", "", "", "ham", "", " and")
    ]


def event(content, *, index=0, finish=None, **more):
    choice = {"index": index, "delta": {} if content is None else {"content": content}, "finish_reason": finish, **more}
    return b"data: " + json.dumps({"choices": [choice]}).encode()


def sent(texts, events):
    passed = [texts.event(event_bytes) for event_bytes in events]
    return [
        None if line is None else json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"] for line in passed
    ]


def test_events_without_text_are_dropped_unless_they_say_something_else():
    texts = AnswerTexts("")
    events = [event(" "), event(" HUM"), event(" "), event(" ", token_ids=[5]), event("", finish="stop")]
    assert sent(texts, events) == [None, {"content": "HUM"}, None, {"content": ""}, {"content": ""}]


def test_a_held_beginning_is_sent_with_the_last_event():
    texts = AnswerTexts(THINK)
    assert sent(texts, [event("<think>"), event(None, finish="length")]) == [None, {"content": "<think>"}]


def test_each_choice_has_its_own_text():
    texts = AnswerTexts("")
    events = [event(" a"), event(" b", index=1), event(" c"), event(" d", index=1)]
    assert sent(texts, events) == [{"content": "a"}, {"content": "b"}, {"content": " c"}, {"content": " d"}]


@pytest.mark.parametrize(
    "passed", [b"data: [DONE]", b": ping", b'data: {"error":{"message":"m"}}', b'data: {"choices":[],"usage":{}}']
)
def test_what_is_no_text_passes_unchanged(passed):
    assert AnswerTexts("").event(passed) == passed


def test_tool_calls_and_completions_have_no_text_to_change():
    body = {"choices": [{"message": {"content": None, "tool_calls": [{}]}}, {"text": " raw"}]}
    assert AnswerTexts("").whole(json.loads(json.dumps(body))) == body
