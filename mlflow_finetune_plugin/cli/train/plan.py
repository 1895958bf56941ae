"""``mlflow-finetune plan``."""

from __future__ import annotations

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.submission.run_arguments import entry_point_option, parameters_option, run_parameters


@click.command()
@click.argument("project", default=".")
@entry_point_option
@parameters_option
@json_option
def plan(project: str, entry_point: str | None, parameters: tuple[str, ...], as_json: bool) -> int:
    """Predict memory and time of a run, without a run.

    Exit code 0: the run fits; 2: it does not fit; 1: no forecast is possible.
    """
    from mlflow_finetune_plugin.api import plan as plan_run

    result = plan_run(project, entry_point, run_parameters(parameters))
    if as_json:
        print_json(result.to_dict())
    else:
        print(result.text())
    return result.exit_code
