"""Notice a failure that the reward or the loss hides, such as answers that only become longer, while a training runs.

The room promises that an alarm is a recorded number with a documented threshold, and is noted once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings
    from mlflow_finetune_plugin.training.alarms.unlikely_answers import report_unlikely_answers
    from mlflow_finetune_plugin.training.alarms.watch import AlarmWatch

__all__ = [
    "AlarmSettings",
    "AlarmWatch",
    "report_unlikely_answers",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "AlarmSettings": "settings",
        "AlarmWatch": "watch",
        "report_unlikely_answers": "unlikely_answers",
    },
)
