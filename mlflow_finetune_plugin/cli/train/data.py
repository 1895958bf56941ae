"""``mlflow-finetune data``."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.errors import ConfigError, DataError
from mlflow_finetune_plugin.submission.run_arguments import entry_point_option, parameters_option, run_parameters


@click.command()
@click.argument("source", default=".")
@entry_point_option
@parameters_option
@click.option("--html", type=click.Path(path_type=Path), metavar="PATH", help="Also write the report as a page.")
@json_option
def data(source: str, entry_point: str | None, parameters: tuple[str, ...], html: Path | None, as_json: bool) -> int:
    """Check data and show what a run would train on, without a run.

    SOURCE is a project folder, a data file, hf:NAME:SPLIT or votes:NAME (default: this folder).
    """
    from mlflow_finetune_plugin.api import check_data

    if html is not None and not html.absolute().parent.is_dir():
        raise ConfigError([f"{html}: its folder does not exist; fix: create it"])
    checked = check_data(source, entry_point, run_parameters(parameters))
    if html is not None:
        html.write_text(checked.page(), encoding="utf-8")
    if as_json:
        print_json(checked.to_dict())
    else:
        print(checked.text())
    if not checked.is_usable:
        raise DataError(checked.problem)
    return 0
