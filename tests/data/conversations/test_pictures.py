"""Every layout of other tools gives the same turns, with what the file names as pictures in their places."""

import json
import re

import pytest

from mlflow_finetune_plugin.data.conversations.conversion import instructed, to_conversations
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.layouts import detect_layout
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

MARK = "\ufffc"
YES = {"role": "assistant", "content": "yes"}
STRUCT = {"bytes": b"png", "path": None}


def user(content):
    return {"role": "user", "content": content}


def read(row, **settings):
    """Return the first conversation of a row, as a run reads it."""
    return interpret([row], ColumnSettings(**settings)).conversations(row)[0].messages


def shown(row, **settings):
    """Return the texts and the pictures of the user turns."""
    return [(turn["content"], turn.get("pictures")) for turn in read(row, **settings) if turn["role"] == "user"]


def text_part(text):
    return {"type": "text", "text": text}


ONE = [(f"{MARK}What is it?", ["a.png"])]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("<image>What is it?"), YES], "images": ["a.png"]},
        {"messages": [user("<image>What is it?"), YES], "image": "a.png"},
        {"messages": [user("What is it?"), YES], "images": ["a.png"]},
        {"messages": [user([{"type": "image"}, text_part("What is it?")]), YES], "images": ["a.png"]},
        {"messages": [user([{"type": "image", "path": "a.png"}, text_part("What is it?")]), YES]},
        {"messages": [user([{"type": "image", "url": "a.png"}, text_part("What is it?")]), YES]},
        {"messages": [user([{"type": "image", "image": "a.png"}, text_part("What is it?")]), YES]},
        {"messages": [user([{"type": "image_url", "image_url": {"url": "a.png"}}, text_part("What is it?")]), YES]},
        {"messages": [user([{"type": "image_url", "image_url": "a.png"}, text_part("What is it?")]), YES]},
        {
            "messages": [
                user([{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "What is it?"}]),
                YES,
            ]
        },
        {"messages": [user([{"image": "a.png"}, {"text": "What is it?"}]), YES]},
        {
            "conversations": [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "yes"}],
            "image": "a.png",
        },
        {"prompt": [user("What is it?")], "completion": [YES], "images": ["a.png"]},
        {"prompt": "What is it?", "completion": "yes", "image": "a.png"},
        {"prompt": "<image>What is it?", "completion": "yes", "image_path": "a.png"},
        {"question": "What is it?", "answer": "yes", "images": '["a.png"]'},
        {"instruction": "What is it?", "input": "", "output": "yes", "image": "a.png"},
        {"text": "What is it?", "label": "yes", "image": "a.png"},
        {"file_name": "a.png", "prompt": "What is it?", "completion": "yes"},
    ],
)
def test_every_layout_with_a_picture_gives_the_same_turn(row):
    assert shown(row) == ONE


@pytest.mark.parametrize("value", [STRUCT, [STRUCT]])
def test_a_picture_may_be_a_struct_of_bytes_and_path(value):
    assert shown({"prompt": "What?", "completion": "yes", "image": value}) == [(f"{MARK}What?", [STRUCT])]
    assert shown({"prompt": "What?", "completion": "yes", "image": {"bytes": None, "path": None}}) == [("What?", None)]


def test_parts_of_one_struct_type_have_nulls_as_parquet_writes_them():
    parts = [
        {"type": "image", "text": None, "image": "a.png", "index": None},
        {"type": "text", "text": "What?", "image": None, "index": None},
    ]
    assert shown({"messages": [user(parts), YES]}) == [(f"{MARK}What?", ["a.png"])]


def test_base64_becomes_a_data_url():
    url = "data:image/png;base64,QUJD"
    source = {"type": "base64", "media_type": "image/png", "data": "QUJD"}
    for part in ({"base64": "QUJD"}, {"base64": url}, {"source": source}, {"source": {"type": "url", "url": url}}):
        assert shown({"messages": [user([text_part("What?"), {"type": "image", **part}]), YES]}) == [
            (f"What?{MARK}", [url])
        ]


def test_pictures_are_taken_in_the_order_of_their_places():
    turns = [user("<image> and <image>?"), YES, user([text_part("And "), {"type": "image"}]), YES]
    assert shown({"messages": turns, "images": ["a", "b", "c"]}) == [
        (f"{MARK} and {MARK}?", ["a", "b"]),
        (f"And {MARK}", ["c"]),
    ]


def test_a_part_may_say_which_picture_it_shows():
    parts = [{"type": "image", "index": 1}, text_part(" or "), {"type": "image", "index": 0}]
    assert shown({"messages": [user(parts), YES], "images": ["a", "b"]}) == [(f"{MARK} or {MARK}", ["b", "a"])]
    again = [user([{"type": "image", "index": 0}, text_part("?")])] * 2
    assert shown({"messages": [again[0], YES, again[1], YES], "images": ["a"]}) == [(f"{MARK}?", ["a"])] * 2


def test_pictures_without_a_place_come_before_the_first_question():
    turns = [{"role": "system", "content": "s"}, user("q"), YES, user("r"), YES]
    assert shown({"messages": turns, "images": ["a", "b"]}) == [(f"{MARK}{MARK}q", ["a", "b"]), ("r", None)]


def test_a_place_in_a_turn_that_is_cut_off_still_takes_its_picture():
    turns = [user("<image>q"), YES, user("<image>r"), {**YES, "weight": 0}]
    assert shown({"messages": turns, "images": ["a", "b"]}) == [(f"{MARK}q", ["a"])]


def test_several_answers_have_the_same_pictures():
    row = {"prompt": "What?", "response": ["yes", "sure"], "image": "a"}
    (first, second) = to_conversations(detect_layout([row]), row)
    assert first.messages[0] == second.messages[0] == {**user(f"{MARK}What?"), "pictures": ["a"]}


def test_a_template_composes_the_question_of_a_picture():
    row = {"image": "a", "animal": "cat", "label": "yes"}
    assert shown(row, prompt_template="Is <image> a {{ animal }}?") == [(f"Is {MARK} a cat?", ["a"])]


def test_the_same_question_is_asked_of_every_picture():
    row = {"file_name": "a.jpg", "text": "A cat."}
    assert shown(row, prompt_template="Describe it.", columns={"completion": "text"}) == [
        (f"{MARK}Describe it.", ["a.jpg"])
    ]
    assert shown({"image": STRUCT, "label": "cat"}, prompt_template="What?") == [(f"{MARK}What?", [STRUCT])]


def test_an_instruction_comes_before_the_picture():
    row = {"prompt": "What?", "completion": "yes", "image": "a"}
    (turn, _) = instructed(to_conversations(detect_layout([row]), row)[0], f"Be {MARK}brief.").messages
    assert turn == {**user(f"Be brief.\n\n{MARK}What?"), "pictures": ["a"]}


def test_rows_without_pictures_stay_as_they_are():
    for images in ({}, {"images": []}, {"image": None}, {"image": ""}, {"file_name": "a.txt"}):
        assert shown({"messages": [user(f"<image> {MARK} in HTML"), YES], **images}) == [
            (f"<image> {MARK} in HTML", None)
        ]


def test_the_column_of_the_pictures_is_used():
    reading = interpret([{"prompt": "q", "completion": "a", "image": "a.png", "file_name": "a.png"}], ColumnSettings())
    for number in range(9):
        row = {"prompt": f"q {number}", "completion": "a", "image": f"{number}.png", "file_name": f"{number}.png"}
        reading.conversations(row)
    reading.check()
    assert not reading.unused.counts


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("q"), YES], "images": ["a.png"]},
        {"messages": [user("q"), YES], "image_path": "a.png"},
        {"messages": [user([text_part("q"), {"type": "image"}]), YES], "image": "a.png"},
        {"messages": [user([text_part("q"), {"type": "image_url", "image_url": {"url": "a.png"}}]), YES]},
        {"conversations": json.dumps([{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]), "image": "a"},
    ],
)
def test_ignoring_images_trains_without_all_of_them(row):
    assert shown(row, ignore=("images",)) == [("q", None)]


def fault_of(row):
    with pytest.raises(RowFault) as caught:
        to_conversations(detect_layout([row]), row)
    return str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": [user("<image>a<image>"), YES], "images": ["a"]},
            "pictures and their places differ in number: places in the turns .*: 2, pictures in the row: 1",
        ),
        ({"messages": [user("<image>"), YES], "images": ["a", "b"]}, ": 1, pictures in the row: 2"),
        ({"messages": [user([{"type": "image"}, text_part("q")]), YES]}, ": 1, pictures in the row: 0"),
        (
            {"messages": [user([{"type": "image", "index": 7}, text_part("q")]), YES], "images": ["a"]},
            ": 1, pictures in the row: 1",
        ),
        ({"messages": [user("q"), {**YES, "content": "<image>"}], "images": ["a"]}, "a picture in an assistant turn"),
        (
            {"messages": [{"role": "system", "content": "<image>"}, user("q"), YES], "images": ["a"]},
            "unsupported field: a picture in a system turn: only user turns hold pictures",
        ),
        (
            {"messages": [user("q"), {"role": "assistant", "content": [{"type": "image", "path": "a"}]}]},
            "only user turns hold pictures",
        ),
        (
            {"messages": [user([{"type": "image", "path": "a"}, text_part("q")]), YES], "images": ["b"]},
            r"images: the turns hold pictures too; data.ignore: \[images\]",
        ),
        (
            {"prompt": "q", "completion": "a", "image": "a", "images": ["a"]},
            "images and image both hold pictures; data.ignore",
        ),
        ({"prompt": "q", "completion": "a", "images": ["a"] * 17}, "too many pictures: 17 pictures; at most 16"),
        ({"prompt": "", "completion": "a", "image": "a"}, "empty prompt"),
        ({"messages": [user([{"type": "video", "video": "a"}, text_part("q")]), YES]}, "only text is read"),
        ({"messages": [user([{"type": "image", "path": "a"}, "q"]), YES]}, "a part of content is str 'q'"),
        ({"messages": [user("q"), YES], "images": ["a"], "videos": ["b"]}, "videos: this version trains on text and"),
    ],
)
def test_a_row_whose_pictures_cannot_be_placed_is_left_out(row, words):
    assert re.search(words, fault_of(row)), fault_of(row)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("pairs", {"prompt": "q", "chosen": "a", "rejected": "b"}),
        ("rated", {"prompt": "q", "completion": "a", "label": True}),
        ("prompts", {"prompt": "q"}),
    ],
)
def test_pairs_ratings_and_prompts_take_no_pictures(form, row):
    reading = interpret([row, {**row, "label": False}] if form == "rated" else [row], ColumnSettings(form=form))
    with pytest.raises(RowFault, match=r"image: pictures are read in rows of answers only.*data.ignore: \[images\]"):
        reading.conversations({**row, "image": "a.png"})
    parts = {**row, "prompt": [user([{"type": "image", "path": "a.png"}, text_part("q")])]}
    with pytest.raises(RowFault, match="pictures are read in rows of answers only"):
        reading.conversations(parts)


def test_the_same_prompt_for_all_rows_needs_pictures():
    with pytest.raises(DataError, match="it reads no column"):
        interpret([{"label": "cat", "text": "a"}], ColumnSettings(prompt_template="What?"))
