"""The command line of ``python -m gradio_app``."""

from dataclasses import fields
from pathlib import Path

import pytest

from gradio_app.arguments import new_parser, read_settings
from gradio_app.settings import PlaygroundSettings
from mlflow_finetune_plugin.errors import ConfigError


def parse(*arguments):
    return read_settings(new_parser().parse_args(arguments))


def test_without_options_the_settings_are_the_defaults():
    assert parse("--endpoint", "http://a/v1/") == PlaygroundSettings(("http://a/v1",))


def test_every_option_sets_its_setting():
    arguments = ["--endpoint", "http://a/v1", "--endpoint", "http://b/v1", "--model", "bot", "--side", "base"]
    arguments += ["--side=-x", "--port", "1", "--host", "h", "--auth-file", "/f", "--user-header", "X-U"]
    arguments += ["--trusted-proxy", "10.0.0.1", "--promoter", "alice", "--public-host", "p", "--prompts", "/p"]
    arguments += ["--keep-traces", "12h", "--max-prompt-chars", "10", "--max-turns", "11", "--max-streams", "13"]
    arguments += ["--max-streams-per-session", "12", "--max-waiting", "14", "--max-body-bytes", "15"]
    arguments += ["--max-connections", "16", "--live-standings", "--project", "/folder"]
    settings = parse(*arguments)
    assert settings == PlaygroundSettings(
        endpoints=("http://a/v1", "http://b/v1"),
        model="bot",
        sides=("base", "-x"),
        host="h",
        port=1,
        auth_file=Path("/f"),
        user_header="X-U",
        trusted_proxies=("10.0.0.1",),
        promoters=("alice",),
        public_hosts=("p",),
        prompt_sets=(Path("/p"),),
        keep_traces_days=0.5,
        max_prompt_chars=10,
        max_turns=11,
        max_streams_per_session=12,
        max_streams=13,
        max_waiting=14,
        max_body_bytes=15,
        max_connections=16,
        live_standings=True,
        project=Path("/folder"),
    )
    defaults = PlaygroundSettings(())
    assert not [
        entry.name for entry in fields(settings) if getattr(settings, entry.name) == getattr(defaults, entry.name)
    ]


def test_all_values_that_cannot_be_read_are_listed_at_once():
    with pytest.raises(ConfigError) as refused:
        parse("--endpoint", "http://a/v1", "--port", "first", "--keep-traces", "long")
    assert "--port: 'first' is not a whole number; fix: " in str(refused.value)
    assert "--keep-traces: 'long' is " in str(refused.value)


def test_the_help_describes_every_option_with_its_default():
    text = " ".join(new_parser().format_help().split())
    assert "the turns in a conversation (default: 50)" in text
    assert "(default: keep all)" in text
