"""The answers in a reference belong to its probes, and have a text and a margin for each token."""

import pytest

from mlflow_finetune_plugin.errors import ServingError
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
