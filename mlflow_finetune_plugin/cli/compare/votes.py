"""``mlflow-finetune votes``: show, import, export and delete the votes on a model's versions, or add a judge's votes."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_finetune_plugin.cli.output import json_option, print_json
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, TrackingError
from mlflow_finetune_plugin.store.model_ref import model_name
from mlflow_finetune_plugin.store.names import BASE

if TYPE_CHECKING:
    from mlflow_finetune_plugin.votes.deletion import Deleted
    from mlflow_finetune_plugin.votes.journal.journal import Journal
    from mlflow_finetune_plugin.votes.judge import Pair
    from mlflow_finetune_plugin.votes.mlflow.reading import Reading
    from mlflow_finetune_plugin.votes.pair import VersionPair

JUDGE_KEY = "MLFLOW_FINETUNE_JUDGE_API_KEY"
_FAULTS_SHOWN = 10


_PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class VotesOptions:
    """The options of one call, by the names of the command line."""

    name: str
    between: tuple[str, str] | None
    as_json: bool
    export: Path | None
    csv: Path | None
    judge: str | None
    judge_model: str | None
    judge_prompts: Path | None
    router: str | None
    forget: str | None
    forget_session: str | None
    delete_older_than: float | None
    delete_unvoted_older_than: float | None

    @property
    def deletions(self) -> list[object]:
        values = (self.forget, self.forget_session, self.delete_older_than, self.delete_unvoted_older_than)
        return [value for value in values if value is not None]


@click.command()
@click.argument("name")
@click.option(
    "--between",
    nargs=2,
    metavar="VERSION VERSION",
    help="Versions, aliases or base to compare (default: challenger and champion, or base where they are one version).",
)
@json_option
@click.option(
    "--export", type=_PATH, metavar="FILE", help="Write decided votes as preference data (JSONL, TRL's layout)."
)
@click.option("--import", "csv", type=_PATH, metavar="FILE.csv", help="Import the votes of a CSV file.")
@click.option("--judge", metavar="URL", help=f"Let a language model vote too; its API key is read from {JUDGE_KEY}.")
@click.option("--judge-model", metavar="MODEL", help="Model that judges at --judge.")
@click.option(
    "--judge-prompts", type=_PATH, metavar="FILE", help="Judge answers to these prompts instead of the voted turns."
)
@click.option(
    "--router", metavar="URL", help=f"Router that answers --judge-prompts; its API key is read from {ROUTER_KEY}."
)
@click.option("--forget", metavar="VOTER", help="Delete a voter's votes and turns: a login, a hash, or anonymous.")
@click.option("--forget-session", metavar="SESSION", help="Delete the turns and votes of a session.")
@click.option("--delete-older-than", type=float, metavar="DAYS", help="Delete older votes and traces.")
@click.option("--delete-unvoted-older-than", type=float, metavar="DAYS", help="Delete older traces without a vote.")
def votes(**values: Any) -> int:
    """Show, import, export and delete the votes on a model's versions.

    One call can import, judge, export and show, in this order. Deletion needs a separate call.
    """
    import mlflow

    from mlflow_finetune_plugin.votes.pair import find_pair

    options = VotesOptions(**{**values, "name": model_name(values["name"])})
    _check_together(options)
    name = options.name
    pair, why_no_pair = find_pair(mlflow.MlflowClient(), name, options.between)
    if (deleted := _delete(options)) is not None:
        print(
            f"{name}: deleted {deleted.votes} lines of this host's journal, {deleted.traces} traces "
            f"and {deleted.feedback} votes on others' traces in MLflow"
        )
        return 0
    if options.csv is not None:
        _import(options.csv, name)
    _bring_over(name)
    if options.judge is not None:
        _judge(options, pair, why_no_pair)
        _bring_over(name)

    from mlflow_finetune_plugin.votes.mlflow.reading import read_votes
    from mlflow_finetune_plugin.votes.report import report_on

    reading = read_votes(name)
    if options.export is not None:
        _export(options.export, reading)
    report = report_on(reading, pair, why_no_pair)
    if options.as_json:
        print_json(report.to_dict())
    else:
        print(report.text())
    return 0


def _check_together(options: VotesOptions) -> None:
    faults = []
    if (options.judge is None) != (options.judge_model is None):
        faults.append("--judge and --judge-model: belong together; fix: give both")
    if (options.judge_prompts is None) != (options.router is None):
        faults.append("--judge-prompts and --router: belong together; fix: give both")
    if options.judge_prompts is not None and options.judge is None:
        faults.append("--judge-prompts: is for a judge; fix: --judge URL --judge-model MODEL")
    actions = [value for value in (options.csv, options.judge, options.export) if value is not None]
    if options.deletions and actions:
        faults.append("deletion cannot be combined with --import, --export or --judge; fix: use two commands")
    if len(options.deletions) > 1:
        faults.append("only one deletion at a time; fix: use one command for each")
    if faults:
        raise ConfigError(faults)


def _journal_here(name: str) -> Journal | None:
    from mlflow_finetune_plugin.votes.journal.journal import Journal, journal_folder

    return Journal(name) if journal_folder(name).is_dir() else None


def _delete(options: VotesOptions) -> Deleted | None:
    from mlflow_finetune_plugin.votes.deletion import (
        delete_older_than,
        delete_unvoted_older_than,
        forget_session,
        forget_voter,
        is_hash,
    )
    from mlflow_finetune_plugin.votes.journal.journal import Journal, journal_folder

    name = options.name
    if options.forget is not None:
        if not journal_folder(name).is_dir() and not is_hash(options.forget):
            raise ConfigError(
                [
                    f"--forget {options.forget}: only the host where votes were cast can tell whose they are, "
                    f"and {journal_folder(name)} is not here; fix: run it there, or give the hash that MLflow shows"
                ]
            )
        return forget_voter(Journal(name), options.forget)
    if options.forget_session is not None:
        return forget_session(Journal(name), options.forget_session)
    if options.delete_older_than is not None:
        return delete_older_than(Journal(name), options.delete_older_than)
    if options.delete_unvoted_older_than is not None:
        return delete_unvoted_older_than(Journal(name), options.delete_unvoted_older_than)
    return None


def _import(path: Path, name: str) -> None:
    from mlflow_finetune_plugin.votes.csv_import import import_csv
    from mlflow_finetune_plugin.votes.journal.journal import Journal

    done = import_csv(path, Journal(name))
    bare = f"; {done.without_receipts} without two receipts will never count" if done.without_receipts else ""
    _say(f"{path}: {done.added} votes cast, {done.existing} known before{bare}")


def _judge(options: VotesOptions, pair: VersionPair | None, why_no_pair: str) -> None:
    from mlflow_finetune_plugin.votes.journal.journal import Journal
    from mlflow_finetune_plugin.votes.judge import JudgeSettings, judge

    if pair is None:
        raise ConfigError([f"--judge: {why_no_pair} fix: --between VERSION VERSION"])
    assert options.judge is not None
    assert options.judge_model is not None  # _check_together refuses one without the other
    settings = JudgeSettings(options.judge, options.judge_model, os.environ.get(JUDGE_KEY) or None)
    pairs = _pairs_to_judge(options, pair)
    report = judge(pairs, settings, Journal(options.name))
    rate = "" if report.consistency is None else f", {report.consistency:.1%} of those with two verdicts"
    _say(
        f"{settings.voter}: {report.consistent} of {len(pairs)} pairs judged alike in both orders{rate}; "
        f"{report.inconsistent} not alike, {len(report.faults)} not judged"
    )
    for turn_id, fault in report.faults[:_FAULTS_SHOWN]:
        _say(f"  turn {turn_id}: {fault}")
    if len(report.faults) > _FAULTS_SHOWN:
        _say(f"  and {len(report.faults) - _FAULTS_SHOWN} more")


def _pairs_to_judge(options: VotesOptions, pair: VersionPair) -> list[Pair]:
    from mlflow_finetune_plugin.votes.judge import answer_pairs, voted_pairs
    from mlflow_finetune_plugin.votes.mlflow.reading import read_texts, read_votes
    from mlflow_finetune_plugin.votes.prompt_sets import read_prompt_set

    name = options.name
    if options.judge_prompts is None:
        people = read_votes(name).between(pair.candidate, pair.champion)
        return voted_pairs(people, read_texts(name, people))
    assert options.router is not None  # _check_together refuses prompts without a router
    models = (_served(name, pair.candidate), _served(name, pair.champion))
    answers = answer_pairs(
        [prompt.messages for prompt in read_prompt_set(options.judge_prompts).prompts],
        url=options.router,
        models=models,
        api_key=os.environ.get(ROUTER_KEY) or None,
    )
    for number, fault in answers.faults[:_FAULTS_SHOWN]:
        _say(f"  prompt {number}: {fault}")
    if answers.faults:
        _say(f"{len(answers.faults)} of {len(answers.faults) + len(answers.pairs)} prompts have no two answers")
    return list(answers.pairs)


def _served(name: str, version: str) -> str:
    return BASE if version == BASE else f"{name}/{version}"


def _bring_over(name: str) -> None:
    """Mirror the votes in this host's journal that MLflow does not have, and report if that fails."""
    from mlflow_finetune_plugin.votes.mlflow.mirror import Mirror

    journal = _journal_here(name)
    if journal is None:
        return
    if journal.damaged or journal.torn:
        _say(
            f"{journal.folder}: {journal.damaged} damaged lines and {journal.torn} bytes of unfinished ones are no votes"
        )
    mirror = Mirror(journal)
    if not mirror.pending:
        return
    try:
        done = mirror.flush()
    except TrackingError as error:
        raise TrackingError(f"{mirror.pending} votes of this host are not in MLflow yet: {error}") from error
    refused = f", {done.refused} refused (set_aside.jsonl says why)" if done.refused else ""
    _say(f"{done.mirrored} votes of this host brought to MLflow{refused}")


def _export(path: Path, reading: Reading) -> None:
    from mlflow_finetune_plugin.votes.mlflow.reading import read_texts
    from mlflow_finetune_plugin.votes.preferences import exportable, preferences, write_preferences

    cast = exportable(reading)
    rows = preferences(cast, read_texts(reading.model, cast))
    beside = write_preferences(path, rows)
    _say(f"{path}: {len(rows.rows)} preference rows, what they rest on in {beside.name}")
    for reason, turns in rows.left_out.items():
        _say(f"  left out {turns}: {reason}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
