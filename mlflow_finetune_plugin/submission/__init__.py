"""Turn a request to MLflow into a supervised job.

The room promises to check everything that can be checked without torch before it creates an MLflow run, and to end the
run with a reason if its work does not begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.submission.backend_config import BackendSettings
    from mlflow_finetune_plugin.submission.mlflow_run import Submission
    from mlflow_finetune_plugin.submission.project import ProjectFolder, open_project
    from mlflow_finetune_plugin.submission.run_arguments import RunArguments, parse_run_arguments
    from mlflow_finetune_plugin.submission.submitted_job import SubmittedJob, submit

__all__ = [
    "BackendSettings",
    "ProjectFolder",
    "RunArguments",
    "Submission",
    "SubmittedJob",
    "open_project",
    "parse_run_arguments",
    "submit",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "BackendSettings": "backend_config",
        "ProjectFolder": "project",
        "RunArguments": "run_arguments",
        "Submission": "mlflow_run",
        "SubmittedJob": "submitted_job",
        "open_project": "project",
        "parse_run_arguments": "run_arguments",
        "submit": "submitted_job",
    },
)
