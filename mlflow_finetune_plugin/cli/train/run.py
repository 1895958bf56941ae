"""``mlflow-finetune run``."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.submission.run_arguments import run_options, run_parameters


@click.command()
@run_options
@json_option
def run(
    project: str,
    entry_point: str | None,
    parameters: tuple[str, ...],
    version: str | None,
    backend_config: str | None,
    experiment_name: str | None,
    run_name: str | None,
    as_json: bool,
) -> int:
    """Train, prove, log and register a model.

    The same as `mlflow run PROJECT -b finetune`. PROJECT is a folder or git URI (default: this folder).
    """
    from mlflow_finetune_plugin.api.training_run import submit, wait
    from mlflow_finetune_plugin.backend import interruptions_held

    interrupts: list[int] = []
    overrides = run_parameters(parameters)
    config = _backend_config(backend_config)
    handle = submit(
        project,
        entry_point,
        overrides,
        version=version,
        backend_config=config,
        experiment_name=experiment_name,
        run_name=run_name,
        guard=partial(interruptions_held, interrupts),
    )
    print(f"  run      {handle.run_id}", file=sys.stderr, flush=True)
    if config.get("detach"):
        if as_json:
            print_json({"run_id": handle.run_id, "status": "RUNNING"})
        else:
            print(handle.run_id)
        return 0
    result = wait(handle, interrupts)
    if as_json:
        print_json(result.to_dict())
    return 0


def _backend_config(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(Path(text).read_text(encoding="utf-8") if text.endswith(".json") else text)
    except OSError as error:
        raise ConfigError([f"-c {text}: cannot be read: {error.strerror}; fix: name a JSON file"]) from error
    except ValueError as error:
        raise ConfigError([f"-c {text}: not JSON: {error}; fix: for example -c '{{\"detach\": true}}'"]) from error
    if not isinstance(value, dict):
        raise ConfigError([f"-c {text}: expected a JSON object; fix: for example -c '{{\"detach\": true}}'"])
    return value
