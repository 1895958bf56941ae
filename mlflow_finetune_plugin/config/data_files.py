"""The data files that a run's configuration names."""

from __future__ import annotations

from pathlib import Path

from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.reader import DataFile


def data_files(files: list[DataFileSettings]) -> tuple[DataFile, ...]:
    """Convert a configuration's files to those of the data room. A task without a name is named after its file."""
    return tuple(
        DataFile(
            Path(file.path),
            file.task or Path(file.path).name.split(".")[0],
            file.weight,
            file.instruction,
            file.layout,
            file.columns,
        )
        for file in files
    )
