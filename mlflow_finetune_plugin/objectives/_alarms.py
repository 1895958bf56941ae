"""The alarms of an objective that learns from preferences."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from mlflow_finetune_plugin.methods import TrainerContext


def trainer_arguments(options: Any, context: TrainerContext) -> AbstractContextManager[Mapping[str, Any]]:
    """Watch the figures of the training, with the thresholds of ``options.alarms``."""
    from mlflow_finetune_plugin.training.alarms.watch import PREFERENCE_ALARMS, AlarmWatch

    return nullcontext({"callbacks": [AlarmWatch(options.alarms, context.report, PREFERENCE_ALARMS)]})
