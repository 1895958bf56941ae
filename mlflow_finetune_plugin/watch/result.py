"""The result of a check, as the command prints it and the Python API returns it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlflow_finetune_plugin.promotion.moves.settlement import Move
from mlflow_finetune_plugin.promotion.result import move_content
from mlflow_finetune_plugin.watch.check import EXIT_CODES, WatchCheck
from mlflow_finetune_plugin.watch.check_run import RecordedCheck
from mlflow_finetune_plugin.watch.report import check_content, check_lines, check_page


@dataclass(frozen=True)
class CheckResult:
    """What a check of the champion decided and moved.

    Args:
        model: The registered model.
        version: The champion that was checked.
        outcome: ``keep``, ``re-tune`` or ``roll back``.
        reason: Why, in one sentence.
        run_id: The MLflow run that holds the report.
        move: The rollback; None where nothing was moved.
        check: The evidence and the verdict.
    """

    model: str
    version: str
    outcome: str
    reason: str
    run_id: str
    move: Move | None
    check: WatchCheck = field(repr=False)

    @classmethod
    def of(cls, check: WatchCheck, recorded: RecordedCheck) -> CheckResult:
        """Return the result of a check that was recorded."""
        verdict, watched = check.verdict, check.watched
        return cls(
            model=watched.name,
            version=watched.champion.number,
            outcome=verdict.outcome,
            reason=verdict.reason,
            run_id=recorded.run_id,
            move=recorded.move,
            check=check,
        )

    @property
    def model_uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    @property
    def exit_code(self) -> int:
        """0 for keep, 3 for re-tune, 4 for roll back."""
        return EXIT_CODES[self.outcome]

    def text(self) -> str:
        """Return the check for a terminal: the verdict first, then each finding with its reason, then what to do."""
        lines = [*check_lines(self.check), f"  report        run {self.run_id}, report.html"]
        if self.move is not None:
            lines.append(f"  rolled back   {self.move.text}")
        elif self.outcome == "roll back":
            lines.append(
                f"  next          mlflow-finetune rollback {self.model} (watch --act does it); nothing was moved"
            )
        elif self.outcome == "re-tune":
            lines.append("  next          train a version on newer rows, then promote it; nothing was moved")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the check, its run and the move as JSON values."""
        return {**check_content(self.check), "run_id": self.run_id, "move": move_content(self.move)}

    def _repr_html_(self) -> str:
        return check_page(self.check)
