"""The record of a model's moves, from the request to a table."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.choice import whole_model
from mlflow_finetune_plugin.promotion.connection import connect
from mlflow_finetune_plugin.promotion.moves.audit import Record
from mlflow_finetune_plugin.promotion.moves.audit import history as read_records
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.registered_model import read_model, registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient

_HEAD = ("when", "what", "alias", "version", "who", "run", "why")


@dataclass(frozen=True)
class MoveHistory:
    """Every decision and move of a model's aliases.

    Args:
        model: The registered model.
        records: The newest first.
        note: What became of a move that was cut off, or why one is still open; None where there is none.
    """

    model: str
    records: tuple[Record, ...]
    note: str | None = None

    def text(self) -> str:
        """Return a table for a terminal, one line per record."""
        if not self.records:
            return f"{self.model}: no alias has been moved"
        rows = [_HEAD, *map(_row, self.records)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
        return "\n".join(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def to_list(self) -> list[dict[str, Any]]:
        """Return the records as JSON values."""
        return [record.to_json() for record in self.records]

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _HEAD)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _row(record))}</tr>" for record in self.records
        )
        note = f"<p>{html.escape(self.note)}</p>" if self.note is not None else ""
        return f"{note}<table><tr>{head}</tr>{rows}</table>"


def history(model: str, *, client: MlflowClient | None = None) -> MoveHistory:
    """Read who moved which alias, when, and on what evidence. A move that was cut off is finished first.

    Args:
        model: The registered model.
        client: None means a client of the current tracking server.

    Raises:
        ConfigError, MoveError: There is no such model.
        TrackingError: The registry does not answer.
    """
    client = connect(client)
    with registry_faults(model):
        name = whole_model(client, model)
    try:
        settled = settle(client, name)
        note = settled.text if settled is not None else None
    except MoveError as error:
        with registry_faults(name):
            read_model(client, name)  # raises for a name that the registry does not have
        note = str(error)  # a move in progress, or one that this user may not settle, must not hide the other moves
    with registry_faults(name):
        return MoveHistory(name, tuple(read_records(client, name)), note)


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
