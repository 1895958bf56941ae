"""One parser reads the names of models for every command."""

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.store.model_ref import ModelRef, find_model_ref, model_name, parse_model_ref


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("my-bot", ModelRef("my-bot")),
        ("my bot", ModelRef("my bot")),
        ("my-bot/1", ModelRef("my-bot", version="1")),
        ("my-bot/007", ModelRef("my-bot", version="7")),
        ("my-bot@champion", ModelRef("my-bot", alias="champion")),
        ("models:/my-bot/1", ModelRef("my-bot", version="1")),
        ("models:/my-bot@champion", ModelRef("my-bot", alias="champion")),
        ("me@work/2", ModelRef("me@work", version="2")),
        ("me@work@canary", ModelRef("me@work", alias="canary")),
    ],
)
def test_each_form_names_a_model_a_version_or_an_alias(text, ref):
    assert parse_model_ref(text) == ref


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "my-bot/",
        "my-bot/0",
        "my-bot/-1",
        "my-bot/one",
        "my-bot/1/2",
        "my-bot@",
        "@champion",
        "/1",
        "my-bot@champion/1@x y",
        "models:/",
        "models:/my-bot",
        "models:/m-0123456789abcdef",
        "runs:/abc/model",
        "a\nb",
        "x" * 601,
    ],
)
def test_any_other_text_is_one_clear_error(text):
    with pytest.raises(ConfigError, match="is not a valid model name; fix: use NAME, NAME/VERSION"):
        parse_model_ref(text)


def test_a_known_name_wins_over_the_alias_that_it_looks_like():
    assert parse_model_ref("me@work", names={"me@work"}) == ModelRef("me@work")


def test_a_reference_prints_in_its_short_form():
    for text in ("my-bot", "my-bot/1", "my-bot@champion"):
        assert str(parse_model_ref(text)) == text


def test_the_registry_says_whether_an_at_sign_belongs_to_the_name(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert find_model_ref(client, "me@work") == ModelRef("me", alias="work")
    client.create_registered_model("me@work")
    assert find_model_ref(client, "me@work") == ModelRef("me@work")
    assert find_model_ref(client, "models:/me@work") == ModelRef("me", alias="work")


def test_model_name_is_the_registered_model_of_every_form(desk, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", desk.tracking_uri)
    mlflow.set_tracking_uri(desk.tracking_uri)
    for text in ("my-bot", "my-bot/1", "my-bot@champion", "models:/my-bot/1", "models:/my-bot@champion"):
        assert model_name(text) == "my-bot"
    desk.client().create_registered_model("me@home")
    assert model_name("me@home") == "me@home"
    assert model_name("models:/me@home") == "me"
