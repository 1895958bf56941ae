"""A version, its tags and its alias, in a real registry."""

import shutil
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_finetune_plugin.errors import ConfigError, TrackingError
from mlflow_finetune_plugin.store.names import CHALLENGER
from mlflow_finetune_plugin.store.registry import find_model, register_adapter

MODEL = """
import mlflow
class Echo(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input
mlflow.models.set_model(Echo())
"""


@pytest.fixture
def client(tmp_path, empty_store) -> MlflowClient:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


@pytest.fixture
def log_model(client, tmp_path):
    experiment = client.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))
    source = Path(tmp_path / "echo.py")
    source.write_text(MODEL)

    def log() -> str:
        run_id = client.create_run(experiment).info.run_id
        signature = mlflow.models.ModelSignature(params=mlflow.types.ParamSchema([]))
        info = mlflow.models.Model.log(
            artifact_path=None, name="m", flavor=mlflow.pyfunc, run_id=run_id, python_model=str(source),
            signature=signature, pip_requirements=[],
        )  # fmt: skip
        return f"models:/{info.model_id}"

    return log


def test_version_has_tags_description_and_alias(client, log_model):
    registered = register_adapter(
        client, log_model(), "bot", tags={"finetune.serving": "vllm"}, description="what it is"
    )
    assert registered.uri == "models:/bot/1"
    version = client.get_model_version_by_alias("bot", CHALLENGER)
    assert (str(version.version), version.description, version.tags) == (
        "1",
        "what it is",
        {"finetune.serving": "vllm"},
    )


def test_second_version_takes_the_alias_and_leaves_others(client, log_model):
    register_adapter(client, log_model(), "bot", tags={}, description="")
    client.set_registered_model_alias("bot", "champion", "1")
    second = register_adapter(client, log_model(), "bot", tags={}, description="")
    assert second.version == "2"
    aliases = client.get_registered_model("bot").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": "1", CHALLENGER: "2"}


def test_asked_again_after_an_outage_it_makes_no_second_version(client, log_model):
    uri = log_model()
    mlflow.register_model(uri, "bot")  # the first try came as far as this
    registered = register_adapter(client, uri, "bot", tags={"a": "b"}, description="whole")
    assert registered.version == "1"
    assert len(client.search_model_versions("name = 'bot'")) == 1
    version = client.get_model_version_by_alias("bot", CHALLENGER)
    assert version.description == "whole"
    assert version.tags == {"a": "b"}


def test_refusal_names_the_model(client):
    with pytest.raises(TrackingError, match="refused 'bot'"):
        register_adapter(client, "models:/m-" + "0" * 32, "bot", tags={}, description="")


def test_find_model_takes_every_form_of_a_name(client, log_model):
    uri = log_model()
    register_adapter(client, uri, "bot", tags={}, description="")
    second = register_adapter(client, log_model(), "bot", tags={}, description="")
    assert find_model(client, "bot").uri == second.uri, "the challenger, while there is no champion"
    client.set_registered_model_alias("bot", "champion", "1")
    for name in ("bot", "bot/1", "bot@champion", "models:/bot/1", "models:/bot@champion"):
        assert find_model(client, name).uri == "models:/bot/1"
    assert find_model(client, uri).uri == uri
    client.delete_registered_model_alias("bot", "champion")
    client.delete_registered_model_alias("bot", CHALLENGER)
    with pytest.raises(ConfigError, match=r"neither a champion nor a challenger; fix: name a version, bot/NUMBER"):
        find_model(client, "bot")
