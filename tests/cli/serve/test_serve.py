"""``mlflow-finetune serve``: what its arguments become, before any engine starts."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.errors import ConfigError

module = importlib.import_module("mlflow_finetune_plugin.cli.serve.serve")


@pytest.mark.parametrize(
    "name", ["my-bot", "my-bot/1", "my-bot@champion", "models:/my-bot/1", "models:/my-bot@champion"]
)
def test_every_form_of_a_name_serves_the_model(desk, monkeypatch, name) -> None:
    served: list[tuple[str, ...]] = []

    def settings(models: tuple[str, ...], *_: Any, **__: Any) -> Any:
        served.append(models)
        raise ConfigError(["far enough"])

    monkeypatch.setattr(module, "check_registry", lambda report: None)
    monkeypatch.setattr(module, "service_settings", settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", desk.tracking_uri)
    assert main(["serve", name]) == 2
    assert served == [("my-bot",)]


def test_no_database_is_created_where_there_is_none(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mlflow_finetune_plugin.serving.registry_check.current_store_uris", lambda: ("sqlite:///mlflow.db",)
    )
    assert main(["serve", "my-bot"]) == 2
    assert "no MLflow tracking store at" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
