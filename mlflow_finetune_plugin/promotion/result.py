"""The result of a promotion, as the command prints it and the Python API returns it."""

from __future__ import annotations

import html
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.promotion.decision import EXIT_CODES, Decision
from mlflow_finetune_plugin.promotion.moves.settlement import Move
from mlflow_finetune_plugin.promotion.report import decision_content, decision_lines, decision_page

Outcome = Literal["promote", "hold", "reject", "unchanged"]


@dataclass(frozen=True)
class PromotionResult:
    """What a promotion decided and moved.

    Args:
        model: The registered model.
        alias: The alias that was to move.
        version: The version that was judged.
        outcome: The verdict; ``unchanged`` where the version has the alias already, and nothing was judged.
        notes: What a reader should know about the choice of the version and the evidence.
        decision: The evidence and the verdict; None where nothing was judged.
        run_id: The MLflow run that holds the report; None after a dry run, or where nothing was judged.
        move: The move of the alias; None where it was not moved.
        is_dry_run: Whether the version was judged only.
    """

    model: str
    alias: str
    version: str
    outcome: Outcome
    notes: tuple[str, ...] = ()
    decision: Decision | None = field(default=None, repr=False)
    run_id: str | None = None
    move: Move | None = None
    is_dry_run: bool = False

    @classmethod
    def of(
        cls, decision: Decision, *, run_id: str | None = None, move: Move | None = None, is_dry_run: bool = False
    ) -> PromotionResult:
        """Return the result of a decision."""
        return cls(
            model=decision.name,
            alias=decision.alias,
            version=decision.candidate.number,
            outcome=decision.verdict.outcome,
            notes=decision.notes,
            decision=decision,
            run_id=run_id,
            move=move,
            is_dry_run=is_dry_run,
        )

    @property
    def model_uri(self) -> str:
        return f"models:/{self.model}/{self.version}"

    @property
    def is_promoted(self) -> bool:
        """Whether the version has the alias now."""
        return self.move is not None or self.outcome == "unchanged"

    @property
    def reason(self) -> str:
        """One sentence that says why."""
        if self.decision is None:
            return f"version {self.version} is already {self.alias}"
        return self.decision.verdict.reason

    @property
    def exit_code(self) -> int:
        """0 for promoted or unchanged, 3 for hold, 4 for reject."""
        return EXIT_CODES[self.outcome]

    def text(self) -> str:
        """Return the result for a terminal: the verdict first, then each criterion with its reason."""
        if self.decision is None:
            return f"already {self.alias}: {self.model} version {self.version}; nothing was judged or moved"
        lines = decision_lines(self.decision)
        if self.is_dry_run:
            lines.append("  dry run  nothing was moved, and no report was written")
        if self.run_id is not None:
            lines.append(f"  report   run {self.run_id}, report.html")
        if self.move is not None:
            lines.append(f"  moved    {self.move.text}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the decision, its run and the move as JSON values."""
        if self.decision is not None:
            content = decision_content(self.decision)
        else:
            content = {
                "mlflow_finetune": __version__,
                "model": self.model,
                "alias": self.alias,
                "candidate": {"version": self.version},
                "champion": {"version": self.version},
                "verdict": {"outcome": self.outcome, "reason": self.reason, "findings": []},
                "notes": list(self.notes),
            }
        return {**content, "run_id": self.run_id, "dry_run": self.is_dry_run, "move": move_content(self.move)}

    def _repr_html_(self) -> str:
        return decision_page(self.decision) if self.decision is not None else f"<p>{html.escape(self.text())}</p>"


def move_content(move: Move | None) -> dict[str, Any] | None:
    """Return a move as JSON values; None where nothing was moved."""
    if move is None:
        return None
    return {key: value for key, value in asdict(move).items() if key != "settled"}
