"""Roll the champion back, or end a canary, from the request to the result."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.promotion.choice import whole_model
from mlflow_finetune_plugin.promotion.connection import connect
from mlflow_finetune_plugin.promotion.moves.canary_moves import stop_canary
from mlflow_finetune_plugin.promotion.moves.move import roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import Move
from mlflow_finetune_plugin.promotion.result import move_content
from mlflow_finetune_plugin.store.registered_model import registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class RollbackResult:
    """What a rollback moved.

    Args:
        model: The registered model.
        move: The move of the alias; None where a canary was ended instead.
        ended_canary: What became of the canary that was ended; None where there was none.
    """

    model: str
    move: Move | None = None
    ended_canary: str | None = None

    @property
    def version(self) -> str | None:
        """The champion after the move; None where it was not moved."""
        return self.move.to_version if self.move is not None else None

    def text(self) -> str:
        """Return the result for a terminal."""
        move = self.move
        if move is None:
            return (
                f"{self.ended_canary}\n"
                "the champion was not moved; to make the previous version champion, run rollback again"
            )
        lines = []
        if move.settled is not None:
            lines.append(move.settled.text)
            if move.settled.move is not None and move.settled.kind == "rollback":
                lines.append("nothing more was moved; to move again, run rollback again")
        lines.append(f"{move.text} ({'not recorded yet' if move.run_id is None else f'run {move.run_id}'})")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the move, or the end of the canary, as JSON values."""
        settled = self.move.settled if self.move is not None else None
        return {
            "model": self.model,
            "move": move_content(self.move),
            "settled": settled.text if settled is not None else None,
            "ended_canary": self.ended_canary,
        }

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(self.text())}</p>"


def rollback(model: str, reason: str | None = None, *, client: MlflowClient | None = None) -> RollbackResult:
    """Make the previous version champion again. A second rollback undoes the first.

    During a canary the canary is ended, and nothing else is moved.

    Args:
        model: The registered model.
        reason: The reason to record.
        client: None means a client of the current tracking server.

    Raises:
        ConfigError, LeaseError, MoveError, TrackingError: Nothing was moved.
    """
    client = connect(client)
    with registry_faults(model):
        name = whole_model(client, model)
    ended = stop_canary(client, name, reason=reason)
    if ended is not None:
        return RollbackResult(name, ended_canary=ended)
    return RollbackResult(name, roll_back(client, name, reason=reason))
