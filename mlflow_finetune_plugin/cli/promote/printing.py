"""What the promotion commands print alike: a coloured verdict, and the warning about a move without a record."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.jobs.console import Colour, coloured

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.moves.settlement import Move

_COLOURS: dict[int, Colour] = {0: "green", 3: "yellow", 4: "red"}
"""Exit code -> colour of the verdict."""


def print_verdict(text: str, exit_code: int) -> None:
    """Print a report whose first line starts with ``VERDICT:``, with the verdict in the colour of its exit code."""
    verdict, colon, rest = text.partition(":")
    print(f"{coloured(verdict, _COLOURS[exit_code], sys.stdout)}{colon}{rest}", flush=True)


def print_unrecorded(move: Move | None) -> None:
    """Warn on stderr about a move whose record could not be written."""
    if move is None or move.unrecorded is None:
        return
    print(
        f"mlflow-finetune: the alias was moved, but its record could not be written: {move.unrecorded}; "
        f"fix: remove the cause, then run mlflow-finetune history {move.name}, which writes the record",
        file=sys.stderr,
    )
