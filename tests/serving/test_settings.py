"""One declaration per setting serves the command line, the deployments and the Python API."""

from pathlib import Path

import pytest

from mlflow_finetune_plugin.cli.serve.serve import serve
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving import EngineLimits, ServiceSettings, check_settings
from mlflow_finetune_plugin.serving.settings import SETTINGS, serve_arguments, service_settings

ALL = ServiceSettings(
    models=("bot", "other"),
    engine="vllm",
    dtype="float32",
    host="::1",
    port=8080,
    api_key_file=Path("/keys.yaml"),
    poll_s=0.5,
    report_every_s=10.0,
    store=Path("/store"),
    max_store=1,
    base_models=(Path("/a"), Path("/b")),
    trust_remote_code=True,
    max_body=2,
    max_loaded=3,
    max_engines=5,
    max_connections=7,
    allowed_hosts=("bots.example", "other.example"),
    limits=EngineLimits(max_loras=1, max_cpu_loras=2, max_rank=8, max_model_len=128, max_num_seqs=4),
)


def parsed(words):
    options = serve.make_context("serve", list(words)).params
    return service_settings(options.pop("models"), options)


@pytest.mark.parametrize("settings", [ALL, ServiceSettings(("bot",))])
def test_settings_survive_the_command_line(settings):
    command, *words = serve_arguments(settings)
    assert command == "serve"
    assert parsed(words) == settings


def test_only_the_changed_settings_are_on_the_command_line():
    assert serve_arguments(ServiceSettings(("bot",), port=9000)) == ["serve", "bot", "--port", "9000"]


def test_the_earlier_name_of_an_option_is_still_accepted():
    assert parsed(["bot", "--tell-every", "5"]).report_every_s == parsed(["bot", "--report-every", "5"]).report_every_s


def test_every_setting_but_the_models_and_the_secret_has_an_option():
    names = {setting.field_name for setting in SETTINGS}
    fields = {*ServiceSettings.__dataclass_fields__, *EngineLimits.__dataclass_fields__}
    assert fields - names == {"models", "limits", "webhook_secret"}
    assert all(setting.help for setting in SETTINGS)


def test_all_faults_are_one_error():
    settings = ServiceSettings(("bot@champion",), engine="tgi", dtype="int8", host="0.0.0.0", port=70000, poll_s=0.0)
    with pytest.raises(ConfigError, match="6 problems"):
        check_settings(settings)
