"""``mlflow-finetune plan``: what a run would take, before there is a run. Reads the base's shapes and tokenizer, no weight."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.config.run_config import RunConfig, load_config, resolve_paths
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.launcher import environments
from mlflow_finetune_plugin.planning.preflight import check_before_spend
from mlflow_finetune_plugin.startup import ask_for_huge_pages

if TYPE_CHECKING:
    from mlflow_finetune_plugin.planning.forecast import Forecast
    from mlflow_finetune_plugin.planning.plan import Plan


@dataclass(frozen=True)
class PlanCommand:
    """A project folder, and overrides as of ``run``."""

    project: str
    entry_point: str
    parameters: Mapping[str, str]


@dataclass(frozen=True)
class ForeseenRun:
    """A settled plan with its forecast, or the reason why there is none."""

    plan: Plan
    forecast: Forecast | None
    why_not: str
    data_summary: str

    @property
    def exit_code(self) -> int:
        """0 fits or is tight, 2 does not fit, 1 nobody can say."""
        if self.forecast is None:
            return 1
        return 2 if self.forecast.verdict == "does not fit" else 0

    def to_json(self) -> dict[str, Any]:
        """The forecast with what it is for: sizes in bytes, times in seconds."""
        plan = self.plan
        return {
            "base_model": {
                "name": plan.base.name,
                "parameters": plan.facts.parameters,
                "precision": plan.base.precision,
            },
            "adaptation": plan.config.adaptation,
            "objective": plan.config.objective,
            "serving": {"engine": plan.serving, "reason": plan.serving_reason, "flags": plan.serving_flags},
            "reasons": plan.reasons,
            "data": self.data_summary,
            "forecast": self.forecast.to_json() if self.forecast is not None else None,
            "not_predicted": self.why_not or None,
        }

    def text(self) -> str:
        """Return the plan for a terminal: the verdict first."""
        from mlflow_finetune_plugin.planning.text import plan_text

        return plan_text(self.plan, self.forecast, self.why_not, self.data_summary)


def foresee_run(command: PlanCommand, caller: Path) -> ForeseenRun:
    """Checks as a run does, prepares the data in a temporary folder, and predicts. Raises as a run would before training."""
    config = _config(command, caller)
    check_before_spend(config)
    ask_for_huge_pages()  # as the worker does: the rates that are measured depend on it
    from mlflow_finetune_plugin.data.preparation import prepare
    from mlflow_finetune_plugin.planning.forecast import forecast_run
    from mlflow_finetune_plugin.planning.plan import data_request, make_plan, mix_tasks, settle_on

    plan = make_plan(config, processes=len(environments()))  # as a run without -c
    with tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        data = prepare(data_request(plan), plan.renderer, Path(folder))
        _, data = mix_tasks(plan, data)
        plan, forecast, why_not = forecast_run(settle_on(plan, data), data)
        return ForeseenRun(plan, forecast, why_not, data.report.summary())


def _config(command: PlanCommand, caller: Path) -> RunConfig:
    project = caller / command.project
    if not project.is_dir():
        raise ConfigError([f"{command.project}: no such project folder; fix: name a folder with a finetune.yaml"])
    return resolve_paths(load_config(project, command.entry_point, command.parameters, caller=caller), project)
