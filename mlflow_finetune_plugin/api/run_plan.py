"""``ft.plan``: predict the memory and time of a run, without a run.

Reads the base's shapes and tokenizer, no weights.
"""

from __future__ import annotations

import html
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.launcher import environments
from mlflow_finetune_plugin.planning.preflight import load_checked_config
from mlflow_finetune_plugin.startup import ask_for_huge_pages

if TYPE_CHECKING:
    from mlflow_finetune_plugin.planning.forecast import Forecast
    from mlflow_finetune_plugin.planning.plan import Plan


@dataclass(frozen=True)
class RunPlan:
    """A plan with every value chosen, and its forecast.

    ``forecast`` is None where there is none; ``why_not`` says why.
    """

    plan: Plan
    forecast: Forecast | None
    why_not: str
    data_summary: str

    @property
    def exit_code(self) -> int:
        """Return 0 when the run fits or is tight, 2 when it does not fit, 1 when there is no forecast."""
        if self.forecast is None:
            return 1
        return 2 if self.forecast.verdict == "does not fit" else 0

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values: sizes in bytes, times in seconds."""
        plan = self.plan
        return {
            "base_model": {
                "name": plan.base.name,
                "parameters": plan.facts.parameters,
                "precision": plan.base.precision,
            },
            "adaptation": plan.config.adaptation,
            "objective": plan.config.objective,
            "start_from": plan.config.start_from,
            "serving": {"engine": plan.serving, "reason": plan.serving_reason, "flags": plan.serving_flags},
            "reasons": plan.reasons,
            "data": self.data_summary,
            "forecast": self.forecast.to_json() if self.forecast is not None else None,
            "not_predicted": self.why_not or None,
        }

    def text(self) -> str:
        """Return the plan for a terminal."""
        from mlflow_finetune_plugin.planning.text import plan_text

        return plan_text(self.plan, self.forecast, self.why_not, self.data_summary)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.text())}</pre>"


def plan(
    project: str | os.PathLike[str] = ".",
    entry_point: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> RunPlan:
    """Check the request as a run does, prepare the data in a temporary folder, and predict memory and time.

    Args:
        project: folder of a project with a ``finetune.yaml``.
        entry_point: None means ``lora``.
        parameters: overrides of the recipe, as ``-P`` takes them.

    Raises:
        ConfigError, DataError, BaseModelError, RewardError: what a run would raise before it trains. A file of rewards is
            imported, in a process apart.
    """
    from mlflow_finetune_plugin.backend import parameter_text

    overrides = {name: parameter_text(value) for name, value in (parameters or {}).items()}
    config = _config(os.fspath(project), entry_point or "lora", overrides)
    ask_for_huge_pages()  # The worker does the same; the measured rates depend on it.
    from mlflow_finetune_plugin.planning.forecast import forecast_run
    from mlflow_finetune_plugin.planning.plan import make_plan, mix_tasks, settle_on
    from mlflow_finetune_plugin.planning.rows import prepare_rows
    from mlflow_finetune_plugin.planning.start import start_of
    from mlflow_finetune_plugin.stages.rewards import check_rewards

    with tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        processes = len(environments())  # a run without a backend config takes every device
        draft = make_plan(config, processes=processes, start=start_of(config, Path(folder)))
        draft, data = prepare_rows(draft, Path(folder))
        _, data = mix_tasks(draft, data)
        settled, forecast, why_not = forecast_run(settle_on(draft, data), data)
        if settled.rewards:
            check_rewards(settled.rewards, data.train[:100]["fields"])
        return RunPlan(settled, forecast, why_not, data.report.summary())


def _config(project: str, entry_point: str, overrides: Mapping[str, str]) -> RunConfig:
    caller = Path.cwd()
    folder = caller / project
    if not folder.is_dir():
        raise ConfigError([f"{project}: no such project folder; fix: name a folder with a finetune.yaml"])
    return load_checked_config(folder, entry_point, overrides, caller=caller)
