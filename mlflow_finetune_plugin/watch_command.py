"""``mlflow-finetune watch``: is the champion still the one to have? Once, or again and again."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.errors import ConfigError, MissingExtraError, ReloadError
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.promotion.carrying_out import CarriedOut
from mlflow_finetune_plugin.promotion.held_out import HeldOut, rows_digest
from mlflow_finetune_plugin.promotion.look_run import WATCH_TAG, carry_out_look
from mlflow_finetune_plugin.promotion.looks import EXIT_CODES, Look, look
from mlflow_finetune_plugin.promotion.model_state import registry_faults
from mlflow_finetune_plugin.promotion.settling import settle
from mlflow_finetune_plugin.promotion.sides import Sources, known_sides
from mlflow_finetune_plugin.promotion.versions import ProvenVersion
from mlflow_finetune_plugin.promotion.watch_report import look_json, look_lines, look_page
from mlflow_finetune_plugin.promotion.watched import find_watched
from mlflow_finetune_plugin.report import Report
from mlflow_finetune_plugin.watch_config import WatchConfig, load_watch_policy, rows_config
from mlflow_finetune_plugin.watch_schedule import Schedule, repeat

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.evaluation.comparison import Side
    from mlflow_finetune_plugin.version_answers import Answerer

Say = Callable[[str], None]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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
    _known: dict[tuple[str, str], Side] = field(default_factory=dict)
    _rows: dict[tuple[str, str], HeldOut] = field(default_factory=dict)

    def look(self) -> tuple[Look, CarriedOut]:
        """Judges, records, and rolls back where it may and the verdict says so.

        Raises MoveError, LeaseError, ConfigError, DataError, TrackingError; then nothing was moved.
        """
        name = self.command.name
        settled = settle(self.client, name)
        if settled is not None:
            self.say(settled.text)
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

    def _answers(self, *versions: ProvenVersion | NotMeasured) -> dict[tuple[str, str], Side]:
        """What was asked before: by this process, and by others as MLflow keeps it."""
        adapters = [version.adapter_digest for version in versions if isinstance(version, ProvenVersion)]
        experiment = self.client.get_experiment_by_name(f"{self.command.name}.promotions")
        told = known_sides(self.client, experiment.experiment_id, adapters) if experiment is not None else {}
        return {**told, **self._known}

    def _answerer(self, uri: str) -> Answerer:
        try:
            from mlflow_finetune_plugin.version_answers import Answerer  # torch is not paid for before it is needed
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
        metrics = champion.held_out.metrics if champion.held_out is not None else ("exact_match",)
        self._rows[place] = HeldOut(tuple(rows), metrics, rows_digest(rows))
        return self._rows[place]


def add_watch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model whose champion is watched")
    parser.add_argument("--data", default=None, metavar="FILE", help="new rows with answers, read anew at each look")
    parser.add_argument("--every", type=_seconds, default=None, metavar="TIME", help="look again: 90s, 30m, 6h, 1d")
    parser.add_argument("--times", type=int, default=None, metavar="N", help="looks in all (default: until Ctrl-C)")
    parser.add_argument("--act", action="store_true", help="do roll back, when that is the verdict")
    parser.add_argument(
        "--policy",
        default=None,
        metavar="DIR",
        help="project whose register.watch holds, and whose data section says how --data is read",
    )
    parser.add_argument("--base-model", default=None, metavar="DIR", help="where the base is now, when it has moved")
    parser.add_argument("--json", action="store_true", help="print each look as JSON; with --every one a line")
    parser.set_defaults(command=_watch)


def run(config: WatchConfig, client: MlflowClient, folder: Path, report: Report) -> dict[str, Any]:
    """``-e watch``: one look in a run, which holds the report too. Returns the run's last word."""
    command = WatchCommand(
        name=config.model,
        policy=_policy(config.project) or WatchPolicy(),
        data=config.data,
        act=config.act,
        project=config.project,
        base_model=config.base_model,
    )
    report.params({key: value for key, value in config.model_dump().items() if value is not None})
    seen, done = Watch(client, command, lambda text: report.stage("watch", text)).look()
    for name, text in (("verdict.json", look_json(seen)), ("report.html", look_page(seen))):
        (folder / name).write_text(text, encoding="utf-8")
        report.artifact(folder / name, "watch")
    report.tags({WATCH_TAG: seen.verdict.outcome, "finetune.watch_run": done.run_id})
    for line in look_lines(seen):
        report.stage("watch", line.strip())
    moved = done.move.text if done.move is not None else f"version {seen.watched.champion.number} stays champion"
    return {"model_uri": seen.watched.champion.uri, "summary": f"{seen.verdict.outcome}: {moved}"}


def _watch(namespace: argparse.Namespace) -> int:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # a server that is away is told, not waited for
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    command = WatchCommand(
        name=namespace.name,
        policy=_given_policy(namespace.policy),
        data=namespace.data,
        act=namespace.act,
        project=namespace.policy,
        base_model=namespace.base_model,
    )
    if namespace.times is not None and (namespace.every is None or namespace.times < 1):
        raise ConfigError([f"--times {namespace.times}: counts the looks of --every; fix: both, from 1 on"])
    watch = Watch(MlflowClient(), command, lambda text: print(f"  {text}", file=sys.stderr, flush=True))

    def look_and_tell() -> int:
        seen, done = watch.look()
        _tell(namespace, seen, done)
        return EXIT_CODES[seen.verdict.outcome]

    if namespace.every is None:
        return look_and_tell()
    return repeat(look_and_tell, Schedule(namespace.every, namespace.times))


def _tell(namespace: argparse.Namespace, seen: Look, done: CarriedOut) -> None:
    if namespace.json:
        print(look_json(seen, indent=None if namespace.every is not None else 1), flush=True)
        return
    lines = [*look_lines(seen), f"  report        run {done.run_id}, report.html"]
    if done.move is not None:
        lines.append(f"  rolled back   {done.move.text}")
    elif seen.verdict.outcome == "roll back":
        lines.append(
            f"  to do         mlflow-finetune rollback {namespace.name} (watch --act does it); nothing was moved"
        )
    elif seen.verdict.outcome == "re-tune":
        lines.append("  to do         train a new version on newer rows, then promote it; nothing was moved")
    print("\n".join(lines), flush=True)
    if done.move is not None and done.move.unrecorded is not None:
        told = f"the move stands, but its record could not be written: {done.move.unrecorded}"
        print(f"mlflow-finetune: {told}; fix: that, then mlflow-finetune history {namespace.name}", file=sys.stderr)


def _given_policy(project: str | None) -> WatchPolicy:
    found = _policy(project)
    if project is not None and found is None:
        raise ConfigError([f"{project}: its recipe has no register.watch; fix: write one, or leave --policy out"])
    return found or WatchPolicy()


def _policy(project: str | None) -> WatchPolicy | None:
    return load_watch_policy(Path(project)) if project is not None else None


def _seconds(given: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", given)
    seconds = float(found[1]) * _UNITS_S[found[2]] if found is not None else 0.0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{given!r} is no time between looks; fix: a number and s, m, h or d, as 30m")
    return seconds
