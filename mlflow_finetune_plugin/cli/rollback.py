"""``mlflow-finetune rollback`` and ``history``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.audit import Record, history
from mlflow_finetune_plugin.promotion.moves.canary_moves import stop_canary
from mlflow_finetune_plugin.promotion.moves.move import roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.clients import command_client
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    pass

_HEAD = ("when", "what", "alias", "version", "who", "run", "why")


def add_rollback_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--reason", default=None, help="goes into the record")
    parser.set_defaults(command=_roll_back)


def add_history_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument("--json", action="store_true", help="print JSON: a list of records, newest first")
    parser.set_defaults(command=_history)


def _roll_back(namespace: argparse.Namespace) -> int:
    client = command_client()
    ended = stop_canary(client, namespace.name, reason=namespace.reason)
    if ended is not None:
        print(ended)
        print("the champion was not moved; to make the previous version champion, call again")
        return 0
    move = roll_back(client, namespace.name, reason=namespace.reason)
    if move.settled is not None:
        print(move.settled.text)
        if move.settled.move is not None and move.settled.kind == "rollback":
            print("nothing more was moved; to move again, call again")
    print(f"{move.text} ({'not recorded yet' if move.run_id is None else f'run {move.run_id}'})")
    if move.unrecorded is not None:
        print(
            f"mlflow-finetune: the move stands, but its record could not be written: {move.unrecorded}; fix: that, then "
            f"mlflow-finetune history {move.name}, which writes it",
            file=sys.stderr,
        )
    return 0


def _history(namespace: argparse.Namespace) -> int:
    client = command_client()
    try:
        settled = settle(client, namespace.name)
        note = settled.text if settled is not None else None
    except MoveError as error:
        with registry_faults(namespace.name):
            read_model(client, namespace.name)  # raises for a name that the registry does not have
        note = str(error)  # a move under way, or one that this user may not settle, is no reason to hide the others
    with registry_faults(namespace.name):
        records = history(client, namespace.name)
    if note is not None:
        print(f"mlflow-finetune: {note}", file=sys.stderr)
    if namespace.json:
        print(json.dumps([record.to_json() for record in records], indent=1, ensure_ascii=False))
    else:
        print(history_text(records) if records else f"{namespace.name}: no alias has been moved")
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
