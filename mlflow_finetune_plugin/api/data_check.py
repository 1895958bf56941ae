"""``ft.check_data``: prepare data as a run would, and report what would be trained on. No MLflow run is created."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.config.run_config import RECIPE_FILE, RunConfig
from mlflow_finetune_plugin.data.sources.folders import has_data_files, is_folder_of_files
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.planning.preflight import load_checked_config

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.report.contents import DataReport


@dataclass(frozen=True)
class CheckedData:
    """The data report of a source. ``is_usable`` is False where a run would refuse the data; ``problem`` says why."""

    source: str
    report: DataReport
    problem: str = ""

    @property
    def is_usable(self) -> bool:
        return not self.problem

    def text(self) -> str:
        """Return the report for a terminal."""
        from mlflow_finetune_plugin.data.report.text import report_text

        return report_text(self.report)

    def page(self) -> str:
        """Return the report as an HTML page."""
        from mlflow_finetune_plugin.data.report.page import report_page

        return report_page(self.report, f"Data of {self.source}")

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**self.report.to_json(), "usable": self.is_usable, "problem": self.problem or None}

    def _repr_html_(self) -> str:
        return self.page()


def check_data(
    source: str | os.PathLike[str] = ".",
    entry_point: str | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> CheckedData:
    """Read, check and encode the data as a run would, and report rows, tokens, problems and skipped rows.

    Args:
        source: project folder, data file, ``hf:NAME:SPLIT``, or ``votes:NAME``.
        entry_point: entry point whose defaults apply; None means ``lora``.
        parameters: overrides of the recipe, as ``-P`` takes them.

    Raises:
        ConfigError, DataError: the source cannot be read at all. Data that can be read and not trained on is returned
            with ``is_usable`` False.
    """
    from mlflow_finetune_plugin.backend import parameter_text
    from mlflow_finetune_plugin.data.report.contents import UnusableDataError

    overrides = {name: parameter_text(value) for name, value in (parameters or {}).items()}
    name = os.fspath(source)
    with tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        config = _config(name, entry_point or "lora", overrides, Path(folder))
        try:
            return CheckedData(name, _report(config, Path(folder)))
        except UnusableDataError as error:
            return CheckedData(name, error.report, str(error))


def _config(source: str, entry_point: str, overrides: Mapping[str, str], empty: Path) -> RunConfig:
    """Return the config of the project, or of an empty project that trains on this data alone."""
    caller = Path.cwd()
    folder = caller / source
    is_project = is_folder_of_files(folder)
    if is_project and not (folder / RECIPE_FILE).is_file() and "data" not in overrides:
        if not has_data_files(folder):
            raise ConfigError(
                [f"{source}: a folder without {RECIPE_FILE} and data files; fix: name data, or a project"]
            )
        is_project = False
    project = folder if is_project else empty
    parameters = dict(overrides) if is_project else {**overrides, "data": source}
    return load_checked_config(project, entry_point, parameters, caller=caller)


def _report(config: RunConfig, folder: Path) -> DataReport:
    from mlflow_finetune_plugin.planning.plan import make_plan
    from mlflow_finetune_plugin.planning.rows import prepare_rows
    from mlflow_finetune_plugin.planning.start import start_of

    _, data = prepare_rows(make_plan(config, start=start_of(config, folder)), folder / "data")
    return data.report
