"""The course of a canary, step by step: as JSON, on the page, as metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

from mlflow_finetune_plugin.gate.criteria import Finding
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.promotion.moves.canary_state import CanaryState


@dataclass(frozen=True)
class CanaryStep:
    """One step of a canary.

    Args:
        share: The canary's share of the requests, in percent.
        seconds: The duration of the step.
        canary: The canary's answers within the step.
        champion: The champion's answers within the step.
        e_worse: The evidence, at the end of the step, that the canary fails more often.
        p95_ms: The 95th percentile of the canary's latencies since the canary began; None where none were reported.
        champion_p95_ms: The same of the champion.
    """

    share: float
    seconds: float
    canary: Answered
    champion: Answered
    e_worse: float
    p95_ms: float | None
    champion_p95_ms: float | None

    @property
    def text(self) -> str:
        """One line for a terminal."""
        step = f"{self.share:g} % for {self.seconds:.0f} s"
        return f"{step}: {self.canary} answers failed, of the champion's {self.champion}, evidence {self.e_worse:.3g}"

    def metrics(self) -> Iterator[tuple[str, float]]:
        """Yield name and value of the step's MLflow metrics."""
        yield "canary/share_percent", self.share
        yield "canary/seconds", self.seconds
        yield "canary/answers", self.canary.answers
        yield "canary/failed", self.canary.failed
        yield "canary/champion_answers", self.champion.answers
        yield "canary/champion_failed", self.champion.failed
        yield "canary/e_worse", self.e_worse
        if self.p95_ms is not None:
            yield "canary/p95_ms", self.p95_ms
        if self.champion_p95_ms is not None:
            yield "canary/champion_p95_ms", self.champion_p95_ms


@dataclass(frozen=True)
class CanaryCourse:
    """All steps that began, the last one as far as it came, and the outcome with the findings that decided it."""

    state: CanaryState
    steps: tuple[CanaryStep, ...]
    outcome: Literal["promote", "hold", "reject"]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the course as JSON values."""
        return {
            "id": self.state.id,
            "begun": self.state.begun,
            "steps_percent": list(self.state.steps),
            "split_before": self.state.split_before,
            "outcome": self.outcome,
            "steps": [asdict(step) for step in self.steps],
        }

    def page(self) -> str:
        """Return the section of the report, HTML."""
        head = "".join(
            f"<th>{name}</th>"
            for name in (
                "share",
                "seconds",
                "failed",
                "champion failed",
                "evidence of more",
                "p95 ms",
                "champion p95 ms",
            )
        )
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(step))}</tr>" for step in self.steps
        )
        return f"<h2>Canary</h2><table><tr>{head}</tr>{rows}</table>"


def _cells(step: CanaryStep) -> list[str]:
    latencies = ["-" if value is None else f"{value:g}" for value in (step.p95_ms, step.champion_p95_ms)]
    shares = [f"{step.share:g} %", f"{step.seconds:.0f}", str(step.canary), str(step.champion)]
    return [*shares, f"{step.e_worse:.3g}", *latencies]
