"""``mlflow-finetune data``: what a run would make of its data, before there is a run. Tokenizer only, no MLflow run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlflow_finetune_plugin.config.run_config import RECIPE_FILE, RunConfig, load_config, resolve_paths
from mlflow_finetune_plugin.data.report.contents import DataReport, UnusableDataError
from mlflow_finetune_plugin.data.report.text import report_text
from mlflow_finetune_plugin.data.sources.arrow_files import is_saved_dataset
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.planning.preflight import check_before_spend


@dataclass(frozen=True)
class DataCommand:
    """A project folder or any data source, overrides as of ``run``, and where the report goes besides the terminal."""

    source: str
    entry_point: str
    parameters: Mapping[str, str]
    html: Path | None = None
    json: Path | None = None


def examine_data(command: DataCommand, caller: Path) -> str:
    """The report as text, and the files that were asked for.

    Raises ConfigError, DataError, and UnusableDataError after its report was written.
    """
    for path in (command.html, command.json):
        if path is not None and not (caller / path).absolute().parent.is_dir():
            raise ConfigError([f"{path}: its folder does not exist; fix: create it"])
    with tempfile.TemporaryDirectory(prefix="mlflow-finetune-") as folder:
        config = _config(command, caller, Path(folder))
        check_before_spend(config)
        try:
            report = _report(config, Path(folder))
        except UnusableDataError as error:
            _write(command, error.report, caller)
            raise
    _write(command, report, caller)
    return report_text(report)


def _write(command: DataCommand, report: DataReport, caller: Path) -> None:
    if command.json is not None:
        (caller / command.json).write_text(json.dumps(report.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")
    if command.html is not None:
        from mlflow_finetune_plugin.data.report.page import report_page

        (caller / command.html).write_text(report_page(report, f"Data of {command.source}"), encoding="utf-8")


def _config(command: DataCommand, caller: Path, empty: Path) -> RunConfig:
    """The config of a run of this project, or of a project that has nothing but this data."""
    folder = caller / command.source
    is_project = folder.is_dir() and not is_saved_dataset(folder) and not (folder / "dataset_dict.json").is_file()
    if is_project and not (folder / RECIPE_FILE).is_file() and "data" not in command.parameters:
        raise ConfigError([f"{command.source}: a folder without {RECIPE_FILE}; fix: name a data file, or a project"])
    project = folder if is_project else empty
    parameters = dict(command.parameters) if is_project else {**command.parameters, "data": command.source}
    return resolve_paths(load_config(project, command.entry_point, parameters, caller=caller), project)


def _report(config: RunConfig, folder: Path) -> DataReport:
    from mlflow_finetune_plugin.data.preparation import prepare
    from mlflow_finetune_plugin.planning.plan import data_request, make_plan

    plan = make_plan(config)
    return prepare(data_request(plan), plan.renderer, folder / "data").report
