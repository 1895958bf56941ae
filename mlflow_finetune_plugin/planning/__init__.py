"""Decide what a run will do, and forecast its memory and time.

The room promises that no weight is read: every ``auto`` is resolved, and a run that does not fit is refused, before any
spend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.planning.forecast import Forecast, forecast_run
    from mlflow_finetune_plugin.planning.plan import Plan, make_plan
    from mlflow_finetune_plugin.planning.preflight import check_before_spend, load_checked_config
    from mlflow_finetune_plugin.planning.text import plan_text

__all__ = ["Forecast", "Plan", "check_before_spend", "forecast_run", "load_checked_config", "make_plan", "plan_text"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "Forecast": "forecast",
        "Plan": "plan",
        "check_before_spend": "preflight",
        "forecast_run": "forecast",
        "load_checked_config": "preflight",
        "make_plan": "plan",
        "plan_text": "text",
    },
)
