"""Checks of a champion from the request to the record, for the command, the Python API and ``-e watch``."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import ConfigError, DataError, GateError, MissingExtraError, MoveError, ReloadError
from mlflow_finetune_plugin.evaluation.results import answer_room
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion.choice import whole_model
from mlflow_finetune_plugin.promotion.connection import connect
from mlflow_finetune_plugin.promotion.evidence.answers import Sources, recorded_answers
from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut, rows_digest
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import WATCH_RUN_TAG, WATCH_TAG
from mlflow_finetune_plugin.store.registered_model import registry_faults
from mlflow_finetune_plugin.watch.check import check
from mlflow_finetune_plugin.watch.check_run import record_check
from mlflow_finetune_plugin.watch.config import WatchConfig, load_watch_policy, names_columns, rows_config
from mlflow_finetune_plugin.watch.report import check_json, check_page
from mlflow_finetune_plugin.watch.result import CheckResult
from mlflow_finetune_plugin.watch.target import find_watched

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
    from mlflow_finetune_plugin.logged_models.answers import Answerer

Say = Callable[[str], None]


@dataclass(frozen=True)
class WatchOptions:
    """How a champion is checked.

    Args:
        data: File of new rows with answers; read again at each check.
        act: Roll back when that is the verdict.
        project: Folder of a project whose ``register.watch`` applies, and whose ``data`` section, where it
            names a layout or columns, says how ``data`` is read. Without one the default criteria apply, and ``data``
            is read as the champion's training read its rows.
        base_model: Folder of the base model, when it has moved.
        trust_code: Run Python code in a version that this package does not know.
        policy: The criteria; None means those of ``project``, which must then have some, or the defaults.
    """

    data: str | None = None
    act: bool = False
    project: str | None = None
    base_model: str | None = None
    trust_code: bool = False
    policy: WatchPolicy | None = None


@dataclass
class Watch:
    """Repeated checks of one model's champion.

    Answers that a check measured, and rows that it read, are reused by the next check.

    Raises:
        ConfigError: The project has no ``register.watch``, or the model's name is not valid.
    """

    model: str
    options: WatchOptions = field(default_factory=WatchOptions)
    client: MlflowClient | None = None
    say: Say = lambda text: None
    _answers: dict[tuple[str, str], AnswerSet] = field(default_factory=dict)
    _rows: dict[tuple[str, str], HeldOut] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._policy = self.options.policy or _required_policy(self.options.project)
        self._client = connect(self.client)

    def check(self) -> CheckResult:
        """Judge the champion, record the check, and roll back where the options allow it and the verdict says so.

        Raises:
            ConfigError, DataError, LeaseError, MoveError, TrackingError: Nothing was moved.
        """
        client = self._client
        if self.options.policy is None and _policy_of(self.options.project) is None:
            fix = "--policy DIR" if self.options.project is None else "a section register.watch"
            self.say(f"the default criteria apply; to use those of a project: {fix}")
        with registry_faults(self.model):
            name = whole_model(client, self.model)
        try:
            settled = settle(client, name)
            if settled is not None:
                self.say(settled.text)
        except MoveError as error:  # a canary or a move under way does not prevent a check
            self.say(str(error))
        with registry_faults(name):
            watched = find_watched(client, name)
            answerer = lru_cache(maxsize=1)(self._answerer)  # one model in memory at a time, and none between checks
            sources = Sources(
                lambda version: answerer(version.uri),
                known=self._known_answers(name, watched.champion, watched.previous),
            )
            champion_check = check(
                client, watched, self._policy, lambda: self._new_rows(watched.champion, answerer), sources, self.say
            )
        recorded = record_check(client, champion_check, sources, has_effect=self.options.act)
        self._answers |= sources.measured
        return CheckResult.of(champion_check, recorded)

    def _known_answers(self, name: str, *versions: ProvenVersion | NotMeasured) -> dict[tuple[str, str], AnswerSet]:
        """Return what was measured before, by this process and by others."""
        adapters = [version.adapter_digest for version in versions if isinstance(version, ProvenVersion)]
        experiment = self._client.get_experiment_by_name(f"{name}.promotions")
        recorded = recorded_answers(self._client, experiment.experiment_id, adapters) if experiment is not None else {}
        return {**recorded, **self._answers}

    def _answerer(self, uri: str) -> Answerer:
        try:
            # imports torch, which most checks do not need
            from mlflow_finetune_plugin.logged_models.answers import Answerer
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"a version's answers need {error.name}; fix: pip install 'mlflow-finetune[train]'"
            ) from error
        return Answerer(uri, self.options.base_model, trust_code=self.options.trust_code)

    def _new_rows(self, champion: ProvenVersion, answerer: Callable[[str], Answerer]) -> HeldOut | NotMeasured | None:
        data, project = self.options.data, self.options.project
        if data is None:
            return None
        try:
            trained = None if names_columns(project) else champion.data_settings
        except GateError as error:
            return NotMeasured(str(error))
        config = rows_config(project, data, caller=Path.cwd(), model=champion.uri, trained=trained)
        path = Path(data)
        key = (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "", champion.adapter_digest)
        if key[0] and key in self._rows:
            return self._rows[key]
        columns = (
            "the columns of its training"
            if trained is not None
            else "the columns that the recipe names or the file shows"
        )
        self.say(f"reading {data} with the template of {champion.uri} and {columns}")
        try:
            with tempfile.TemporaryDirectory(prefix="watch-") as folder:
                rows = answerer(champion.uri).rows(config, Path(folder))
        except (ReloadError, MissingExtraError) as error:
            return NotMeasured(" ".join(str(error).split()))
        if not rows:
            raise DataError(f"{data}: has no row that can be used; fix: mlflow-finetune data {data} says why")
        longest = answer_room(rows)
        self._rows[key] = HeldOut(tuple(rows), {"exact_match": None}, longest, rows_digest(rows, longest))
        return self._rows[key]


def check_champion(
    model: str,
    options: WatchOptions | None = None,
    *,
    client: MlflowClient | None = None,
    say: Say = lambda text: None,
) -> CheckResult:
    """Check once whether the champion is still the best version, and record the check.

    Args:
        model: The registered model.
        options: None means the defaults.
        client: None means a client of the current tracking server.
        say: Receives a line before each step that takes time.

    Raises:
        ConfigError, DataError, LeaseError, MoveError, TrackingError: Nothing was moved.
    """
    return Watch(model, options or WatchOptions(), client, say).check()


def run(config: WatchConfig, client: MlflowClient, folder: Path, report: Report) -> dict[str, Any]:
    """Carry out ``-e watch``: one check inside a run, which holds the report too. Returns the run's result."""
    options = WatchOptions(
        data=config.data,
        act=config.act,
        project=config.project,
        base_model=config.base_model,
        trust_code=config.trust_code,
        policy=_policy_of(config.project) or WatchPolicy(),
    )
    report.params({key: value for key, value in config.model_dump().items() if value is not None})
    result = check_champion(config.model, options, client=client, say=lambda text: report.stage("watch", text))
    for name, text in (("verdict.json", check_json(result.check)), ("report.html", check_page(result.check))):
        report.text(folder / name, text, "watch")
    report.tags({WATCH_TAG: result.outcome, WATCH_RUN_TAG: result.run_id})
    for line in result.text().splitlines():
        report.stage("watch", line.strip())
    move = result.move
    moved = move.text if move is not None else f"version {result.version} stays champion"
    if move is not None and move.unrecorded is not None:
        moved += f"; its record could not be written: {move.unrecorded}"
    return {"model_uri": result.model_uri, "summary": f"{result.outcome}: {moved}"}


def _required_policy(project: str | None) -> WatchPolicy:
    """Return the criteria of a project that the user named, or the defaults where it has none, or none is named.

    A project may be named for its ``data`` section alone. Raises ConfigError for one that has neither.
    """
    policy = _policy_of(project)
    if project is not None and policy is None and not names_columns(project):
        raise ConfigError(
            [
                f"{project}: its recipe has neither register.watch nor data.layout or data.columns; "
                "fix: write one of them, or leave --policy out"
            ]
        )
    return policy or WatchPolicy()


def _policy_of(project: str | None) -> WatchPolicy | None:
    return load_watch_policy(Path(project)) if project is not None else None
