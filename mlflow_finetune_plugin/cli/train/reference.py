"""``mlflow-finetune methods`` and ``schema``."""

from __future__ import annotations

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json


@click.command()
@json_option
def methods(as_json: bool) -> int:
    """List entry points, adaptations and objectives with their options."""
    from mlflow_finetune_plugin.config.reference import methods_json, methods_text

    if as_json:
        print_json(methods_json())
    else:
        print(methods_text())
    return 0


@click.command()
def schema() -> int:
    """Print the JSON Schema of finetune.yaml, for editors."""
    from mlflow_finetune_plugin.config.reference import json_schema

    print_json(json_schema())
    return 0
