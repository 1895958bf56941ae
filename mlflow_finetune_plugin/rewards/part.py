"""What every part of a reward can do, and the part that a process scores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process import Description, ScoringError, ScoringProcess


class RewardPart(Protocol):
    """A part of a reward."""

    def check(self, columns: Collection[str] | None) -> list[str]:
        """Return what is wrong, a line for each problem, before anything is scored.

        Args:
            columns: The columns of the rows; None: they are not known yet.
        """

    def open(self) -> None:
        """Start what scores. Raises ScoringError."""

    def close(self) -> None:
        """End what scores. Closing it again does nothing."""

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Return a score for each completion.

        Args:
            completions: What to score.
            until_fault: Whether to stop at the first fault; completions after it have no value.
        """


class ProcessPart:
    """A part that a scoring process scores. ``check`` starts the process, which imports the user's code, and ends it."""

    def __init__(self, process: ScoringProcess) -> None:
        self._process = process

    def check(self, columns: Collection[str] | None) -> list[str]:
        """Return what is wrong; see ``RewardPart``."""
        try:
            description = self._process.start()
        except ScoringError as error:
            return [str(error)]
        finally:
            self._process.close()
        return _column_faults(description, columns)

    def open(self) -> None:
        """Start the process; see ``RewardPart``."""
        self._process.start()

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Score the completions; see ``RewardPart``."""
        return self._process.score(completions, until_fault=until_fault)


def _column_faults(description: Description, columns: Collection[str] | None) -> list[str]:
    missing = [name for name in description.columns if name not in columns] if columns is not None else []
    if not missing:
        return []
    has = ", ".join(sorted(columns or ())) or "none"
    return [
        f"{description.name}() takes {', '.join(missing)}, and the rows have no such column; their columns: {has}; "
        "fix: correct the parameter's name, or give it a default"
    ]


ColumnFaults = Callable[[Collection[str] | None], list[str]]
"""Return what the columns of the rows lack."""
