"""Turns with pictures, as templates and as chat APIs read them."""

from mlflow_finetune_plugin.images.turns import MARK, for_request, for_template, marked_text, pictures_of

TURN = {"role": "user", "content": f"{MARK}Compare with {MARK}, please", "pictures": ["a", "b"]}


def test_template_reads_a_part_in_the_place_of_each_picture():
    assert for_template(TURN) == {
        "role": "user",
        "content": [
            {"type": "image"},
            {"type": "text", "text": "Compare with "},
            {"type": "image"},
            {"type": "text", "text": ", please"},
        ],
    }


def test_turn_without_pictures_stays_text():
    turn = {"role": "assistant", "content": "yes"}
    assert for_template(turn) == turn
    assert for_request(turn, str) == turn


def test_request_has_the_data_url_of_each_picture():
    parts = for_request(TURN, "data:{}".format)["content"]
    assert [part["image_url"]["url"] for part in parts if part["type"] == "image_url"] == ["data:a", "data:b"]


def test_a_mark_that_belongs_to_no_picture_is_removed():
    text, pictures = marked_text([("text", f"a{MARK}b"), ("picture", "p"), ("text", "c")])
    assert (text, pictures) == (f"ab{MARK}c", ["p"])
    assert pictures_of([{"content": text, "pictures": pictures}, {"content": "x"}]) == ["p"]
