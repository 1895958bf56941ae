"""The answers in a reference belong to its probes, and have a text and a margin for each token."""

import pytest
from shown_pictures import BLUE, RED, picture

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.images.turns import MARK
from mlflow_finetune_plugin.serving.versions.card import check_reference

ANSWER = {"probe": 0, "ids": [5, 6], "texts": ["a", "ab"], "margins": [1.0, 2.0]}


def reference(**changes):
    probe = {"prompt_ids": [1], "completion_ids": [2], "messages": [{"role": "user", "content": "a"}]}
    served = {
        "base_log_probs": [[-1.0]] * 2,
        "adapter_log_probs": [[-2.0]] * 2,
        "noise": 0.0,
        "gap": 0.0,
        "max_gap": 1.0,
    }
    served["answers"] = [{**ANSWER, **changes}]
    return {"precision": "float32", "probes": [probe, {**probe, "messages": None}], "served_as": {"float32": served}}


def test_an_answer_of_a_chat_is_accepted():
    check_reference(reference(), "bot/1")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "changes",
    [
        {"probe": 1},
        {"probe": 2},
        {"probe": -1},
        {"texts": ["a"]},
        {"margins": [1.0]},
        {"margins": [1.0, float("nan")]},
        {"ids": []},
        {"ids": [5] * 257, "texts": ["a"] * 257, "margins": [1.0] * 257},
        {"texts": [1, 2]},
    ],
)
def test_an_answer_that_cannot_be_compared_is_refused(changes):
    with pytest.raises(ServingError, match=r"bot/1: reference\.json.*fix: register it again"):
        check_reference(reference(**changes), "bot/1")


def reference_with_picture(stored=None, **changes):
    shape = picture(RED)
    turn = {"role": "user", "content": f"{MARK}What is it?", "pictures": [shape.sha256], **changes}
    whole = reference()
    whole["probes"][0]["messages"] = [turn]
    whole["pictures"] = {shape.sha256: PicturesInMemory.encoded(shape)} if stored is None else stored
    return whole


def test_a_probe_with_its_picture_is_accepted():
    check_reference(reference_with_picture(), "bot/1")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (reference_with_picture({}), "a picture of probe 0 is missing"),
        (reference_with_picture({picture(RED).sha256: "%%"}), "a picture of probe 0 cannot be read"),
        (reference_with_picture({picture(RED).sha256: "AAAA"}), "a picture of probe 0 cannot be read"),
        (
            reference_with_picture({picture(RED).sha256: PicturesInMemory.encoded(picture(BLUE))}),
            "a picture of probe 0 is another one",
        ),
        (reference_with_picture({"cat": "AAAA"}), "pictures"),
        (reference_with_picture(pictures="cat"), "probe 0 does not name its pictures as texts"),
        (reference_with_picture(pictures=[7]), "probe 0 does not name its pictures as texts"),
        (reference_with_picture(content="no place"), "more or fewer pictures than places"),
    ],
)
def test_pictures_that_are_not_those_of_the_probes_are_refused(changed, fault):
    with pytest.raises(ServingError, match=rf"bot/1: reference\.json.*{fault}.*fix: register it again"):
        check_reference(changed, "bot/1")
