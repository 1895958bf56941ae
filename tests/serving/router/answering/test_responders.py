"""The error for a model that the router does not have: one message with one fix."""

import pytest

from mlflow_finetune_plugin.serving.router.answering.responders import unknown_model


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("no such model here", "'bot/1': no such model here; fix: use one of GET /v1/models"),
        (
            "bot/1: its base is missing; fix: --base-model FOLDER",
            "bot/1: its base is missing; fix: --base-model FOLDER",
        ),
    ],
)
def test_an_unknown_model_has_one_fix(why, message):
    assert str(unknown_model("bot/1", why)) == message
