"""What to prepare: data files, their layout, and how to split and shorten the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings
from mlflow_finetune_plugin.data.sources.locations import report_name
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.methods import RowForm


@dataclass(frozen=True)
class DataFile:
    """One data file and how to use its rows.

    Attributes:
        path: A file, a data set of the hub or an MLflow artifact (see ``sources/locations.py``).
        task: The task that the rows belong to.
        weight: 2 uses each row twice, 0.5 uses a seeded half of the rows.
        instruction: Text that is put before the first user turn of each row, with a blank line between.
        layout: The layout of this file; None means the request's.
        columns: The columns of this file; None means the request's.
        ignore: The columns of this file that are not a part of the task; None means the request's.
        prompt_template: Jinja text that composes the prompts of this file; None means the request's.
        tags: The names of the fields and roles of ShareGPT's turns in this file, where they have others.
        copy: Where the rows of ``votes:NAME`` were written, in ``layout``; the request's settings of columns do not apply to them.
    """

    path: Path
    task: str
    weight: float = 1.0
    instruction: str | None = None
    layout: str | None = None
    columns: Mapping[str, str] | None = None
    ignore: tuple[str, ...] | None = None
    prompt_template: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    copy: Path | None = None

    def settings(self, defaults: ColumnSettings) -> ColumnSettings:
        """Return how the file's columns are read, with the request's settings where the file has none."""
        if self.copy is not None:
            return ColumnSettings(self.layout or "auto", {}, group=defaults.group, form=defaults.form)
        return ColumnSettings(
            layout=self.layout or defaults.layout,
            columns=defaults.columns if self.columns is None else self.columns,
            ignore=defaults.ignore if self.ignore is None else self.ignore,
            prompt_template=self.prompt_template or defaults.prompt_template,
            group=defaults.group,
            form=defaults.form,
            tags=self.tags,
        )

    @property
    def report_name(self) -> str:
        """The name for reports: the configured one, never the path of a downloaded copy."""
        return report_name(str(self.path))


@dataclass(frozen=True)
class DataRequest:
    """What to prepare.

    Attributes:
        train: The training files; empty to prepare held-out files only.
        eval: The held-out files, or the fraction of training rows to hold out; None means a tenth, at most 500 rows.
        layout: ``auto`` or a layout's name.
        columns: The column of each part of the layout that the user named.
        overlength: What to do with rows of more than ``max_length`` tokens; ``split`` applies to plain text only.
        max_length: Most tokens of a training example.
        max_eval_rows: Most held-out rows; None means no limit.
        seed: Seed of the split and of the sample for weights.
        ignore: Columns that are not a part of the task.
        max_skipped: The largest share of a file's rows that may be unusable, from 0 to 1.
        prompt_template: Jinja text over the columns of a row that gives its prompt; None means that the layout gives it.
        validation: The fraction of the training rows that choose the best weights instead of being trained on; None means none.
        group: The column that names the group of a row; None means that rows are independent.
        form: What the objective needs each row to hold.
        virtual_token_ids: The ids that are put in front of every training and validation row; they count in ``max_length``.
        picture_hosts: The hosts from which pictures behind links are fetched.
    """

    train: tuple[DataFile, ...]
    eval: tuple[DataFile, ...] | float | None
    layout: str
    columns: Mapping[str, str]
    overlength: Literal["error", "drop", "truncate", "split"]
    max_length: int
    max_eval_rows: int | None
    seed: int
    ignore: tuple[str, ...] = ()
    prompt_template: str | None = None
    max_skipped: float = 1.0
    validation: float | None = None
    group: str | None = None
    form: RowForm = "answers"
    virtual_token_ids: tuple[int, ...] = ()
    picture_hosts: tuple[str, ...] = ()

    @property
    def most_tokens(self) -> int:
        """Most tokens of a row without its virtual tokens."""
        return self.max_length - len(self.virtual_token_ids)

    @property
    def column_settings(self) -> ColumnSettings:
        """How the columns of the files are read; a file may have other settings."""
        return ColumnSettings(self.layout, self.columns, self.ignore, self.prompt_template, self.group, self.form)

    @property
    def eval_files(self) -> tuple[DataFile, ...]:
        """The held-out files; empty where they are a fraction of the training rows."""
        return self.eval if isinstance(self.eval, tuple) else ()

    def check(self) -> None:
        """Raise DataError where a value is not valid."""
        if not self.train and not isinstance(self.eval, tuple):
            raise DataError("data.train names no file; fix: set data.train: FILE")
        for file in (*self.train, *self.eval_files):
            if not (math.isfinite(file.weight) and file.weight > 0):
                raise DataError(
                    f"{file.path}: weight {file.weight} is not a positive number; fix: use a number above 0, or remove the file"
                )
        if isinstance(self.eval, float | int) and not 0 < self.eval < 1:
            raise DataError(
                f"data.eval: {self.eval} is not a fraction between 0 and 1; fix: use for example 0.1, or a file"
            )
