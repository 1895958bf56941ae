"""``mlflow-finetune rollback`` and ``history``."""

from __future__ import annotations

import sys

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.cli.promote.printing import print_unrecorded


@click.command()
@click.argument("model")
@click.option("--reason", metavar="TEXT", help="Reason to record.")
@json_option
def rollback(model: str, reason: str | None, as_json: bool) -> int:
    """Make the previous version champion again.

    A second rollback undoes the first. During a canary, rollback ends the canary and moves nothing else.
    """
    from mlflow_finetune_plugin.api import rollback as roll_back

    result = roll_back(model, reason)
    if as_json:
        print_json(result.to_dict())
    else:
        print(result.text())
    print_unrecorded(result.move)
    return 0


@click.command()
@click.argument("model")
@json_option
def history(model: str, as_json: bool) -> int:
    """Show who moved which alias, when, and on what evidence."""
    from mlflow_finetune_plugin.api import history as read_history

    moves = read_history(model)
    if moves.note is not None:
        print(f"mlflow-finetune: {moves.note}", file=sys.stderr)
    if as_json:
        print_json(moves.to_list())
    else:
        print(moves.text())
    return 0
