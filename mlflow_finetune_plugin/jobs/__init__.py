"""Run the processes of a job and own the status of its MLflow run.

The room promises that a run's status is true whatever dies: the worker, the supervisor, the machine or the tracking
server. A supervisor writes the status, and ``examine`` ends the runs whose processes died unnoticed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.jobs.folder import JobFolder
    from mlflow_finetune_plugin.jobs.gpus import visible_gpus
    from mlflow_finetune_plugin.jobs.health_checks import examine
    from mlflow_finetune_plugin.jobs.progress import ProgressDisplay
    from mlflow_finetune_plugin.jobs.report import Report, ReportReader
    from mlflow_finetune_plugin.jobs.run_record import RunRecord
    from mlflow_finetune_plugin.jobs.supervisor import start_supervisor

__all__ = [
    "JobFolder",
    "ProgressDisplay",
    "Report",
    "ReportReader",
    "RunRecord",
    "examine",
    "start_supervisor",
    "visible_gpus",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "JobFolder": "folder",
        "ProgressDisplay": "progress",
        "Report": "report",
        "ReportReader": "report",
        "RunRecord": "run_record",
        "examine": "health_checks",
        "start_supervisor": "supervisor",
        "visible_gpus": "gpus",
    },
)
