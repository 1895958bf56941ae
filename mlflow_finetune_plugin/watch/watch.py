"""Looks at a champion from their request to their record, for the command and for ``-e watch``."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import ConfigError, DataError, MissingExtraError, MoveError, ReloadError
from mlflow_finetune_plugin.evaluation.results import answer_room
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion.answers import Sources, known_sides
from mlflow_finetune_plugin.promotion.held_out import HeldOut, rows_digest
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion
from mlflow_finetune_plugin.store.names import WATCH_RUN_TAG, WATCH_TAG
from mlflow_finetune_plugin.store.registered_model import registry_faults
from mlflow_finetune_plugin.watch.carry_out import LookedThrough, carry_out_look
from mlflow_finetune_plugin.watch.check import Look, look
from mlflow_finetune_plugin.watch.config import WatchConfig, load_watch_policy, rows_config
from mlflow_finetune_plugin.watch.report import look_json, look_lines, look_page
from mlflow_finetune_plugin.watch.target import find_watched

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
    from mlflow_finetune_plugin.logged_models.answers import Answerer

Say = Callable[[str], None]


@dataclass(frozen=True)
class WatchCommand:
    """``project``: folder of a recipe; ``base_model``: where the base is now, when it has moved."""

    name: str
    policy: WatchPolicy
    data: str | None = None
    act: bool = False
    project: str | None = None
    base_model: str | None = None


@dataclass
class Watch:
    """Looks at one model. What a look has asked of versions, and read of a file, the next one need not ask and read again."""

    client: MlflowClient
    command: WatchCommand
    say: Say
    _known: dict[tuple[str, str], AnswerSet] = field(default_factory=dict)
    _rows: dict[tuple[str, str], HeldOut] = field(default_factory=dict)

    def look(self) -> tuple[Look, LookedThrough]:
        """Judges, records, and rolls back where it may and the verdict says so.

        Raises MoveError, LeaseError, ConfigError, DataError, TrackingError; then nothing was moved.
        """
        name = self.command.name
        if self.command.project is None:
            self.say("judged by the defaults of register.watch; --policy DIR takes a recipe's")
        try:
            settled = settle(self.client, name)
            if settled is not None:
                self.say(settled.text)
        except MoveError as error:  # a canary or a move under way keeps nobody from looking
            self.say(str(error))
        with registry_faults(name):
            watched = find_watched(self.client, name)
            speaker = lru_cache(maxsize=1)(self._answerer)  # one model in memory at a time, and none between looks
            sources = Sources(
                lambda version: speaker(version.uri), known=self._answers(watched.champion, watched.previous)
            )
            seen = look(
                self.client,
                watched,
                self.command.policy,
                lambda: self._new_rows(watched.champion, speaker),
                sources,
                self.say,
            )
        done = carry_out_look(self.client, seen, sources, acts=self.command.act)
        self._known |= sources.measured
        return seen, done

    def _answers(self, *versions: ProvenVersion | NotMeasured) -> dict[tuple[str, str], AnswerSet]:
        """What was asked before: by this process, and by others as MLflow keeps it."""
        adapters = [version.adapter_digest for version in versions if isinstance(version, ProvenVersion)]
        experiment = self.client.get_experiment_by_name(f"{self.command.name}.promotions")
        told = known_sides(self.client, experiment.experiment_id, adapters) if experiment is not None else {}
        return {**told, **self._known}

    def _answerer(self, uri: str) -> Answerer:
        try:
            from mlflow_finetune_plugin.logged_models.answers import (
                Answerer,  # torch is not paid for before it is needed
            )
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"asking a version needs {error.name}; fix: pip install 'mlflow-finetune[train]'"
            ) from error
        return Answerer(uri, self.command.base_model)

    def _new_rows(self, champion: ProvenVersion, speaker: Callable[[str], Answerer]) -> HeldOut | NotMeasured | None:
        data = self.command.data
        if data is None:
            return None
        config = rows_config(self.command.project, data, caller=Path.cwd(), model=champion.uri)
        path = Path(data)
        place = (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "", champion.adapter_digest)
        if place[0] and place in self._rows:
            return self._rows[place]
        self.say(f"reading {data} with the template of {champion.uri}")
        try:
            with tempfile.TemporaryDirectory(prefix="watch-") as folder:
                rows = speaker(champion.uri).rows(config, Path(folder))
        except (ReloadError, MissingExtraError) as error:
            return NotMeasured(" ".join(str(error).split()))
        if not rows:
            raise DataError(f"{data}: holds no row that can be asked; fix: mlflow-finetune data {data} says why")
        longest = answer_room(rows)
        self._rows[place] = HeldOut(tuple(rows), {"exact_match": None}, longest, rows_digest(rows, longest))
        return self._rows[place]


def run(config: WatchConfig, client: MlflowClient, folder: Path, report: Report) -> dict[str, Any]:
    """``-e watch``: one look in a run, which holds the report too. Returns the run's last word."""
    command = WatchCommand(
        name=config.model,
        policy=_policy_of(config.project) or WatchPolicy(),
        data=config.data,
        act=config.act,
        project=config.project,
        base_model=config.base_model,
    )
    report.params({key: value for key, value in config.model_dump().items() if value is not None})
    seen, done = Watch(client, command, lambda text: report.stage("watch", text)).look()
    for name, text in (("verdict.json", look_json(seen)), ("report.html", look_page(seen))):
        report.text(folder / name, text, "watch")
    report.tags({WATCH_TAG: seen.verdict.outcome, WATCH_RUN_TAG: done.run_id})
    for line in look_lines(seen):
        report.stage("watch", line.strip())
    moved = done.move.text if done.move is not None else f"version {seen.watched.champion.number} stays champion"
    if done.move is not None and done.move.unrecorded is not None:
        moved += f"; its record could not be written: {done.move.unrecorded}"
    return {"model_uri": seen.watched.champion.uri, "summary": f"{seen.verdict.outcome}: {moved}"}


def given_policy(project: str | None) -> WatchPolicy:
    """The policy of a project that somebody named; without one the defaults. Raises ConfigError for one that has none."""
    found = _policy_of(project)
    if project is not None and found is None:
        raise ConfigError([f"{project}: its recipe has no register.watch; fix: write one, or leave --policy out"])
    return found or WatchPolicy()


def _policy_of(project: str | None) -> WatchPolicy | None:
    return load_watch_policy(Path(project)) if project is not None else None
