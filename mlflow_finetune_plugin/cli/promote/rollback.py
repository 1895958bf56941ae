"""``mlflow-finetune rollback`` and ``history``."""

from __future__ import annotations

import sys

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.audit import Record
from mlflow_finetune_plugin.promotion.moves.audit import history as read_history
from mlflow_finetune_plugin.promotion.moves.canary_moves import stop_canary
from mlflow_finetune_plugin.promotion.moves.move import roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.clients import command_client
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

_HEAD = ("when", "what", "alias", "version", "who", "run", "why")


@click.command()
@click.argument("name")
@click.option("--reason", metavar="TEXT", help="Reason to record.")
def rollback(name: str, reason: str | None) -> int:
    """Make the previous version champion again.

    A second rollback undoes the first. During a canary, rollback ends the canary and moves nothing else.
    """
    client = command_client()
    ended = stop_canary(client, name, reason=reason)
    if ended is not None:
        print(ended)
        print("the champion was not moved; to make the previous version champion, run rollback again")
        return 0
    move = roll_back(client, name, reason=reason)
    if move.settled is not None:
        print(move.settled.text)
        if move.settled.move is not None and move.settled.kind == "rollback":
            print("nothing more was moved; to move again, run rollback again")
    print(f"{move.text} ({'not recorded yet' if move.run_id is None else f'run {move.run_id}'})")
    if move.unrecorded is not None:
        print(
            f"mlflow-finetune: the alias was moved, but its record could not be written: {move.unrecorded}; fix: that, then "
            f"mlflow-finetune history {move.name}, which writes it",
            file=sys.stderr,
        )
    return 0


@click.command()
@click.argument("name")
@json_option
def history(name: str, as_json: bool) -> int:
    """Show who moved which alias, when, and on what evidence."""
    client = command_client()
    try:
        settled = settle(client, name)
        note = settled.text if settled is not None else None
    except MoveError as error:
        with registry_faults(name):
            read_model(client, name)  # raises for a name that the registry does not have
        note = str(error)  # a move in progress, or one that this user may not settle, must not hide the other moves
    with registry_faults(name):
        records = read_history(client, name)
    if note is not None:
        print(f"mlflow-finetune: {note}", file=sys.stderr)
    if as_json:
        print_json([record.to_json() for record in records])
    else:
        print(history_text(records) if records else f"{name}: no alias has been moved")
    return 0


def history_text(records: list[Record]) -> str:
    """One line per record, in columns."""
    rows = [_HEAD, *(_row(record) for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(record: Record) -> tuple[str, ...]:
    what = record.kind if record.is_moved or record.outcome in (None, "promote") else str(record.outcome)
    if not record.is_moved and what == record.kind:
        what = f"{what} (not moved)"
    return (
        f"{record.when[:19]}Z",
        what,
        record.alias,
        f"{record.from_version or 'none'} -> {record.to_version or 'none'}",
        record.who,
        record.run_id or "-",
        " ".join(record.reason.split()),
    )
