"""Compare two models, or one model with a bound, by intervals and tests.

The room promises the error rates that its functions name. Tests over votes and answers keep them however often they are
repeated on growing data; intervals over rows hold for one set of rows. ``benchmarks/gate_errors.py`` measures both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.gate.statistics.error_budget import candidate_alpha
    from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
    from mlflow_finetune_plugin.gate.statistics.paired import PairedRows, paired_interval
    from mlflow_finetune_plugin.gate.statistics.proportions import wilson_interval
    from mlflow_finetune_plugin.gate.statistics.ranking import rank
    from mlflow_finetune_plugin.gate.statistics.sequential import betting_test
    from mlflow_finetune_plugin.gate.statistics.unpaired import difference_interval

__all__ = [
    "FailureTest",
    "PairedRows",
    "betting_test",
    "candidate_alpha",
    "difference_interval",
    "paired_interval",
    "rank",
    "wilson_interval",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "FailureTest": "failures",
        "PairedRows": "paired",
        "betting_test": "sequential",
        "candidate_alpha": "error_budget",
        "difference_interval": "unpaired",
        "paired_interval": "paired",
        "rank": "ranking",
        "wilson_interval": "proportions",
    },
)
