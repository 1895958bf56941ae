"""``mlflow-finetune doctor``."""

from __future__ import annotations

import sys

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.jobs.console import coloured


@click.command()
@click.option("--reap", is_flag=True, help="End runs whose process or host died.")
@json_option
def doctor(reap: bool, as_json: bool) -> int:
    """Check the installation, the device, and runs that were left behind.

    Exit code 1: something needs a fix.
    """
    from mlflow_finetune_plugin.jobs.health_checks import examine

    checks = list(examine(reap=reap))
    if as_json:
        print_json([{"good": check.is_good, "text": check.text} for check in checks])
    else:
        for check in checks:
            mark = coloured("ok  ", "green", sys.stdout) if check.is_good else coloured("FIX ", "red", sys.stdout)
            print(f"{mark} {check.text}")
    return 0 if all(check.is_good for check in checks) else 1
