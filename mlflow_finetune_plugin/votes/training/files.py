"""Write the rows of a model's votes to a file for one run, with a record of the votes, so that a resumed run has the same rows.

``NAME.jsonl`` holds the rows, and ``NAME.json`` the record: ids of votes and digests, no texts and no voters. Votes that are
deleted in MLflow are therefore gone from everything but the folder of a run that uses them, which is removed after it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow_finetune_plugin.durable_files import write_whole
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.methods import RowForm
from mlflow_finetune_plugin.votes.journal.journal import Journal, journal_folder
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredVote
from mlflow_finetune_plugin.votes.mlflow.mirror import Mirror
from mlflow_finetune_plugin.votes.mlflow.reading import SAME_VERSION, Reading, read_texts, read_votes
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces, tracking_errors
from mlflow_finetune_plugin.votes.preferences import exportable
from mlflow_finetune_plugin.votes.training.grouping import Grouping, group_rows
from mlflow_finetune_plugin.votes.training.rows import VotedRow, VotedRows, kind_fault, voted_rows

GROUP_COLUMN = "group"
"""The column of the rows that names their group."""

_JUDGES = "votes of judges"


@dataclass(frozen=True)
class VoteFile:
    """The rows that a model's votes gave for a run.

    Attributes:
        model: The registered model.
        form: The form of the rows.
        digest: SHA-256 of the file with the rows.
        rows: Number of rows.
        votes: Id and revision of each vote that was read, also of those without a row.
        voters: Number of voters behind the rows.
        versions: The versions whose answers were voted on in the rows, ``base`` among them.
        left_out: Number of turns or answers without a row, by reason.
        not_used: Number of votes that were not read as training data, by reason.
        grouping: What the groups of the rows are; None where rows have none.
    """

    model: str
    form: RowForm
    digest: str
    rows: int
    votes: tuple[tuple[str, int], ...]
    voters: int
    versions: tuple[str, ...]
    left_out: Mapping[str, int]
    not_used: Mapping[str, int]
    grouping: str | None

    @property
    def source(self) -> str:
        """How a recipe names these rows."""
        return f"votes:{self.model}"

    @property
    def sentence(self) -> str:
        """What the rows rest on, for the data report."""
        parts = [
            f"{self.source}: {self.rows:,} rows of {len(self.votes):,} votes by {self.voters:,} voter(s) on answers of "
            f"{', '.join(self.versions)}"
        ]
        parts += [f"left out {count:,}: {reason}" for reason, count in self.left_out.items()]
        parts += [f"not used {count:,}: {reason}" for reason, count in self.not_used.items()]
        return "; ".join([*parts, *([self.grouping] if self.grouping else [])])

    def lineage(self) -> dict[str, Any]:
        """Return what a dataset input says of the votes."""
        return {
            "model": self.model,
            "digest": self.digest,
            "votes": len(self.votes),
            "voters": self.voters,
            "versions": list(self.versions),
        }

    def record(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "votes": [list(vote) for vote in self.votes], "versions": list(self.versions)}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> VoteFile:
        votes = tuple((str(vote_id), int(revision)) for vote_id, revision in values["votes"])
        return cls(**{**values, "votes": votes, "versions": tuple(values["versions"])})


def rows_path(folder: Path, model: str) -> Path:
    """Return the file with the rows of a model's votes."""
    return folder / f"{quote(model, safe='')}.jsonl"


def record_path(folder: Path, model: str) -> Path:
    """Return the file with the record of a model's votes."""
    return folder / f"{quote(model, safe='')}.json"


def read_vote_files(folder: Path, models: Sequence[str]) -> tuple[VoteFile, ...] | None:
    """Return the records of these models in a folder; None unless all of them were written there."""
    if not all(record_path(folder, model).is_file() for model in models):
        return None
    return tuple(
        VoteFile.from_record(json.loads(record_path(folder, model).read_text(encoding="utf-8"))) for model in models
    )


def write_vote_files(
    models: Sequence[str],
    form: RowForm,
    folder: Path,
    *,
    grouped: bool,
    tracking_uri: str | None = None,
    earlier: Sequence[VoteFile] = (),
) -> tuple[VoteFile, ...]:
    """Read the votes of models from MLflow and write their rows to a folder. Votes of this host's journal are mirrored first.

    Args:
        models: Registered models, each once.
        form: The form of the rows.
        folder: Where the files go; it is created.
        grouped: Whether rows get a column with their group. Groups are the same in the files of all models.
        tracking_uri: The tracking server; None means the one that MLflow uses now.
        earlier: The records of an earlier attempt of the run. Its votes are used again, and no later ones.

    Raises:
        DataError: No such model, no votes, votes that give nothing to learn from, or votes of the earlier attempt that are gone.
        TrackingError: MLflow does not answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pins = {file.model: file for file in earlier}
    found = [_read(model, form, tracking_uri, pins.get(model)) for model in models]
    grouping = group_rows([row for one in found for row in one.made.rows]) if grouped else None
    if grouping is not None and grouping.count < 2:
        raise DataError(
            f"votes:{models[0]}: all rows are of one prompt or one conversation, and none could be held out; fix: vote on answers "
            "to other prompts, in new conversations, or set data.eval to a file"
        )
    names = iter(grouping.names) if grouping is not None else None
    files = []
    for one in found:
        rows = [{**row.columns, GROUP_COLUMN: next(names)} if names else row.columns for row in one.made.rows]
        files.append(_write(one, rows, form, folder, grouping))
    for file in files:
        _check_same(file, pins.get(file.model))
    return tuple(files)


@dataclass(frozen=True)
class _Found:
    """The votes of a model and the rows that they give."""

    reading: Reading
    votes: tuple[MirroredVote, ...]
    made: VotedRows


def _read(model: str, form: RowForm, tracking_uri: str | None, earlier: VoteFile | None) -> _Found:
    _check_model(model, tracking_uri)
    _bring_over(model, tracking_uri)
    reading = read_votes(model, tracking_uri)
    votes = exportable(reading)
    if earlier is not None:
        votes = _pinned(votes, earlier)
    if not votes:
        unused = "; ".join(f"{count:,}: {reason}" for reason, count in _not_used(reading).items())
        raise DataError(
            f"votes:{model}: people have cast no votes with receipts{f' ({unused})' if unused else ''}; fix: vote in the "
            f"playground (mlflow-finetune playground --model {model}), and see `mlflow-finetune votes {model}`"
        )
    made = voted_rows(votes, read_texts(model, votes, tracking_uri), form)
    if (fault := kind_fault(made, form)) is not None:
        raise DataError(f"votes:{model}: {len(votes):,} votes, and {fault}")
    return _Found(reading, votes, made)


def _check_model(model: str, tracking_uri: str | None) -> None:
    """Raise DataError where the registry has no such model."""
    from mlflow.exceptions import MlflowException

    traces = VoteTraces(model, tracking_uri)
    with tracking_errors(traces.server):
        try:
            traces.client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise DataError(
                f"votes:{model}: the registry has no model {model!r}; fix: name a registered model, whose votes "
                "`mlflow-finetune votes NAME` shows"
            ) from error


def _bring_over(model: str, tracking_uri: str | None) -> None:
    """Mirror the votes in this host's journal that MLflow does not have."""
    if not journal_folder(model).is_dir():
        return
    mirror = Mirror(Journal(model), tracking_uri)
    if mirror.pending:
        mirror.flush()


def _pinned(votes: Sequence[MirroredVote], earlier: VoteFile) -> tuple[MirroredVote, ...]:
    """Return the votes of an earlier attempt. Raises DataError where some were deleted or changed since."""
    wanted = set(earlier.votes)
    kept = tuple(vote for vote in votes if (vote.vote_id, vote.revision) in wanted)
    if len(kept) < len(wanted):
        raise DataError(
            f"{earlier.source}: {len(wanted) - len(kept):,} of the {len(wanted):,} votes of the run were deleted or changed "
            "since it began, so it cannot continue with the same rows; fix: start a new run"
        )
    return kept


def _check_same(file: VoteFile, earlier: VoteFile | None) -> None:
    if earlier is not None and (earlier.form, earlier.digest) != (file.form, file.digest):
        raise DataError(
            f"{file.source}: the votes of the run give other rows than when it began (texts were deleted, or the objective or "
            "data section was changed); fix: the same command as before, or a new run"
        )


def _not_used(reading: Reading) -> dict[str, int]:
    reasons = {reason: count for reason, count in reading.not_counted.items() if reason != SAME_VERSION}
    judges = sum(vote.vote.kind != "person" and vote.fault in (None, SAME_VERSION) for vote in reading.votes)
    return {**reasons, **({_JUDGES: judges} if judges else {})}


def _write(
    found: _Found, rows: Sequence[Mapping[str, Any]], form: RowForm, folder: Path, grouping: Grouping | None
) -> VoteFile:
    model = found.reading.model
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file = VoteFile(
        model=model,
        form=form,
        digest=hashlib.sha256(content).hexdigest(),
        rows=len(rows),
        votes=tuple((vote.vote_id, vote.revision) for vote in found.votes),
        voters=len({vote.voter for row in found.made.rows for vote in row.votes}),
        versions=_versions(found.made.rows),
        left_out=found.made.left_out,
        not_used=_not_used(found.reading),
        grouping=None if grouping is None else grouping.sentence,
    )
    write_whole(rows_path(folder, model), content)
    write_whole(record_path(folder, model), json.dumps(file.record(), indent=1, ensure_ascii=False).encode())
    return file


def _versions(rows: Sequence[VotedRow]) -> tuple[str, ...]:
    """Return the versions behind rows: the base, then versions by number."""
    versions = {str(version) for row in rows for vote in row.votes for version in vote.versions}
    return tuple(sorted(versions, key=lambda version: (int(version) if version.isdigit() else -1, version)))
