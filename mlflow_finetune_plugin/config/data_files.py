"""The data files that a run's configuration names."""

from __future__ import annotations

from pathlib import Path

from mlflow_finetune_plugin.config.sections import DataFileSettings, DataSettings
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings
from mlflow_finetune_plugin.data.request import DataFile
from mlflow_finetune_plugin.methods import RowForm


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
            None if file.ignore is None else tuple(file.ignore),
            file.prompt_template,
            file.tags or {},
        )
        for file in files
    )


def column_settings(data: DataSettings, form: RowForm = "answers") -> ColumnSettings:
    """Return how the columns of a file are read for rows of this form, unless the file has other settings."""
    return ColumnSettings(data.layout, data.columns, tuple(data.ignore), data.prompt_template, data.group, form)
