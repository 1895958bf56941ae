"""``votes:NAME`` in the data section: check it, and write the rows of the votes to the folder of a run, once.

A training's votes are written when it is submitted, so that faults are reported before there is a run. A later call finds them in the
run's folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.config.sections import DataFileSettings, DataSettings
from mlflow_finetune_plugin.data.request import DataFile
from mlflow_finetune_plugin.data.sources.locations import VOTES, voted_model
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.votes.training.files import VoteFile, read_vote_files, rows_path, write_vote_files
from mlflow_finetune_plugin.votes.training.rows import LAYOUTS

FOLDER = "votes"


@dataclass(frozen=True)
class VotedData:
    """The rows of votes in a run's folder. Without any, files are as the recipe has them."""

    folder: Path = Path()
    files: tuple[VoteFile, ...] = ()

    def of(self, files: tuple[DataFile, ...]) -> tuple[DataFile, ...]:
        """Return the data files, those of votes with the place and the layout of their rows."""
        forms = {file.source: file.form for file in self.files}
        return tuple(
            replace(
                file, copy=rows_path(self.folder, voted_model(str(file.path))), layout=LAYOUTS[forms[str(file.path)]]
            )
            if str(file.path) in forms
            else file
            for file in files
        )


def find_votes(
    config: RunConfig, folder: Path, *, tracking_uri: str | None = None, earlier: Sequence[VoteFile] = ()
) -> VotedData:
    """Return the votes that the data section names, from the folder of a run, or read from MLflow and written there.

    Args:
        config: The configuration of the run.
        folder: The folder of the run.
        tracking_uri: The tracking server; None means the one that MLflow uses now.
        earlier: The votes of an earlier attempt of the run, which are used again.

    Raises:
        DataError: There are no such votes, or they give nothing to learn from.
        TrackingError: MLflow does not answer.
    """
    models = voted_models(config.data)
    if not models:
        return VotedData()
    place = folder / FOLDER
    files = read_vote_files(place, models)
    if files is None:
        form = load_method("objective", config.objective).ROWS
        grouped = not isinstance(config.data.eval, list) and len(models) == len(config.data.train)
        files = write_vote_files(models, form, place, grouped=grouped, tracking_uri=tracking_uri, earlier=earlier)
    return VotedData(place, files)


def voted_models(data: DataSettings) -> tuple[str, ...]:
    """Return the registered models whose votes a data section names."""
    return tuple(dict.fromkeys(voted_model(file.path) for file in _sources(data)))


def votes_problems(data: DataSettings) -> Iterator[str]:
    """Yield what is wrong with the votes in a data section, as far as it is known without MLflow."""
    paths = [file.path for file in _sources(data)]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        yield f"{path}: named more than once in data; fix: name it once, and its rows are divided by data.eval: 0.1"
    for file in _sources(data):
        settings = {
            "columns": file.columns,
            "ignore": file.ignore,
            "layout": file.layout,
            "prompt_template": file.prompt_template,
        }
        for name in (name for name, value in settings.items() if value):
            yield f"{file.path}: {name} does not apply to votes; fix: remove it"
    if paths and data.group is not None:
        yield (
            f"data.group = {data.group!r}: the rows of {paths[0]} have no such column, and groups of their own; "
            "fix: remove data.group"
        )


def votes_not_read(data: DataSettings) -> Iterator[str]:
    """Yield a problem for each ``votes:NAME`` of an evaluation."""
    for file in _sources(data):
        name = file.path.removeprefix(VOTES)
        yield (
            f"{file.path}: evaluate reads no votes; fix: `mlflow-finetune votes {name} --export FILE.jsonl`, and data.eval: FILE.jsonl"
        )


def _sources(data: DataSettings) -> list[DataFileSettings]:
    files = [*(data.train or []), *(data.eval if isinstance(data.eval, list) else [])]
    return [file for file in files if file.path.startswith(VOTES)]
