"""``mlflow-finetune votes``: what a model's votes say; import, export, a judge's votes, deleting."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import ConfigError, TrackingError
from mlflow_finetune_plugin.store.names import BASE, CHALLENGER, CHAMPION

if TYPE_CHECKING:
    from mlflow_finetune_plugin.votes.deletion import Deleted
    from mlflow_finetune_plugin.votes.journal.journal import Journal
    from mlflow_finetune_plugin.votes.judge import Pair
    from mlflow_finetune_plugin.votes.mlflow.reading import Reading

JUDGE_KEY = "MLFLOW_FINETUNE_JUDGE_API_KEY"
_VERSION = re.compile(r"[1-9][0-9]*")
_FAULTS_SHOWN = 10


def add_votes_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="registered model")
    parser.add_argument(
        "--between",
        nargs=2,
        metavar=("VERSION", "VERSION"),
        help="versions, aliases or base (default: challenger and champion)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write decided votes as preference data (JSONL, TRL's layout)"
    )
    parser.add_argument("--import", dest="csv", type=Path, metavar="FILE.csv", help="cast the votes of a CSV file")
    parser.add_argument("--judge", metavar="URL", help=f"let a model vote too; key in {JUDGE_KEY}")
    parser.add_argument("--judge-model", metavar="MODEL", help="which model --judge asks")
    parser.add_argument(
        "--judge-prompts", type=Path, metavar="FILE", help="judge answers to these prompts, not the votes' turns"
    )
    parser.add_argument("--router", metavar="URL", help=f"who answers --judge-prompts; key in {ROUTER_KEY}")
    deleting = parser.add_mutually_exclusive_group()
    deleting.add_argument(
        "--forget", metavar="VOTER", help="delete a person's votes and conversations: a login, a hash, anonymous"
    )
    deleting.add_argument("--forget-session", metavar="SESSION", help="delete a session's turns and votes")
    deleting.add_argument("--delete-older-than", type=float, metavar="DAYS", help="delete older votes and traces")
    deleting.add_argument(
        "--delete-unvoted-older-than", type=float, metavar="DAYS", help="delete older traces that nobody voted on"
    )


def votes(namespace: argparse.Namespace) -> int:
    """Deletes, or imports, judges, exports and shows, in this order. Raises ConfigError and what these raise."""
    import mlflow

    from mlflow_finetune_plugin.serving.versions.catalog import Catalog

    name = namespace.name
    _check_together(namespace)
    aliases = Catalog(mlflow.MlflowClient(), (name,)).read()[name].aliases
    pair, why_no_pair = _pair(name, namespace.between, aliases)
    if (deleted := _delete(namespace)) is not None:
        print(
            f"{name}: deleted {deleted.votes} lines of this host's journal, {deleted.traces} traces "
            f"and {deleted.feedback} votes on others' traces in MLflow"
        )
        return 0
    if namespace.csv is not None:
        _import(namespace.csv, name)
    _bring_over(name)
    if namespace.judge is not None:
        _judge(namespace, pair, why_no_pair)
        _bring_over(name)

    from mlflow_finetune_plugin.votes.mlflow.reading import read_votes
    from mlflow_finetune_plugin.votes.report import report_on

    reading = read_votes(name)
    if namespace.export is not None:
        _export(namespace.export, reading)
    report = report_on(reading, pair, why_no_pair)
    print(json.dumps(report.to_json(), indent=1, ensure_ascii=False) if namespace.json else report.text())
    return 0


def _check_together(namespace: argparse.Namespace) -> None:
    faults = []
    if (namespace.judge is None) != (namespace.judge_model is None):
        faults.append("--judge and --judge-model: belong together; fix: give both")
    if (namespace.judge_prompts is None) != (namespace.router is None):
        faults.append("--judge-prompts and --router: belong together; fix: give both")
    if namespace.judge_prompts is not None and namespace.judge is None:
        faults.append("--judge-prompts: is for a judge; fix: --judge URL --judge-model MODEL")
    deletes = (
        namespace.forget,
        namespace.forget_session,
        namespace.delete_older_than,
        namespace.delete_unvoted_older_than,
    )
    acts = (namespace.csv, namespace.judge, namespace.export)
    if any(option is not None for option in deletes) and any(option is not None for option in acts):
        faults.append("deleting: goes alone; fix: leave --import, --export and --judge to another command")
    if faults:
        raise ConfigError(faults)


def _pair(name: str, between: list[str] | None, aliases: Mapping[str, str]) -> tuple[tuple[str, str] | None, str]:
    """The versions to compare; or why there are none, where nobody asked for any in particular. Raises ConfigError."""
    if between is None:
        missing = [alias for alias in (CHALLENGER, CHAMPION) if alias not in aliases]
        if missing:
            return None, f"{name} has no {' and no '.join(missing)}, so there is no pair to compare by default."
        between = [CHALLENGER, CHAMPION]
    pair = (_version(name, between[0], aliases), _version(name, between[1], aliases))
    if pair[0] == pair[1]:
        raise ConfigError([f"{between[0]} and {between[1]}: are both {name}/{pair[0]}; fix: --between two versions"])
    return pair, ""


def _version(name: str, asked: str, aliases: Mapping[str, str]) -> str:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.errors import unknown
    from mlflow_finetune_plugin.store.registry import find_model

    if asked in aliases:
        return aliases[asked]
    if asked == BASE:
        return asked
    if _VERSION.fullmatch(asked):
        find_model(MlflowClient(), f"models:/{name}/{asked}")
        return asked
    raise ConfigError([f"--between {asked}: {unknown(f'alias of {name}', asked, [*aliases, BASE])}"])


def _journal_here(name: str) -> Journal | None:
    from mlflow_finetune_plugin.votes.journal.journal import Journal, journal_folder

    return Journal(name) if journal_folder(name).is_dir() else None


def _delete(namespace: argparse.Namespace) -> Deleted | None:
    from mlflow_finetune_plugin.votes.deletion import (
        delete_older_than,
        delete_unvoted_older_than,
        forget_session,
        forget_voter,
        is_hash,
    )
    from mlflow_finetune_plugin.votes.journal.journal import Journal, journal_folder

    name = namespace.name
    if namespace.forget is not None:
        if not journal_folder(name).is_dir() and not is_hash(namespace.forget):
            raise ConfigError(
                [
                    f"--forget {namespace.forget}: only the host where votes were cast can tell whose they are, "
                    f"and {journal_folder(name)} is not here; fix: run it there, or give the hash that MLflow shows"
                ]
            )
        return forget_voter(Journal(name), namespace.forget)
    if namespace.forget_session is not None:
        return forget_session(Journal(name), namespace.forget_session)
    if namespace.delete_older_than is not None:
        return delete_older_than(Journal(name), namespace.delete_older_than)
    if namespace.delete_unvoted_older_than is not None:
        return delete_unvoted_older_than(Journal(name), namespace.delete_unvoted_older_than)
    return None


def _import(path: Path, name: str) -> None:
    from mlflow_finetune_plugin.votes.csv_import import import_csv
    from mlflow_finetune_plugin.votes.journal.journal import Journal

    done = import_csv(path, Journal(name))
    bare = f"; {done.without_receipts} without two receipts will never count" if done.without_receipts else ""
    _say(f"{path}: {done.added} votes cast, {done.existing} known before{bare}")


def _judge(namespace: argparse.Namespace, pair: tuple[str, str] | None, why_no_pair: str) -> None:
    from mlflow_finetune_plugin.votes.journal.journal import Journal
    from mlflow_finetune_plugin.votes.judge import JudgeSettings, judge

    if pair is None:
        raise ConfigError([f"--judge: {why_no_pair} fix: --between VERSION VERSION"])
    settings = JudgeSettings(namespace.judge, namespace.judge_model, os.environ.get(JUDGE_KEY) or None)
    pairs = _pairs_to_judge(namespace, pair)
    report = judge(pairs, settings, Journal(namespace.name))
    rate = "" if report.consistency is None else f", {report.consistency:.1%} of those with two verdicts"
    _say(
        f"{settings.voter}: {report.consistent} of {len(pairs)} pairs judged alike in both orders{rate}; "
        f"{report.inconsistent} not alike, {len(report.faults)} not judged"
    )
    for turn_id, fault in report.faults[:_FAULTS_SHOWN]:
        _say(f"  turn {turn_id}: {fault}")
    if len(report.faults) > _FAULTS_SHOWN:
        _say(f"  and {len(report.faults) - _FAULTS_SHOWN} more")


def _pairs_to_judge(namespace: argparse.Namespace, pair: tuple[str, str]) -> list[Pair]:
    from mlflow_finetune_plugin.votes.judge import answer_pairs, voted_pairs
    from mlflow_finetune_plugin.votes.mlflow.reading import read_texts, read_votes
    from mlflow_finetune_plugin.votes.prompt_sets import read_prompt_set

    name = namespace.name
    if namespace.judge_prompts is None:
        people = read_votes(name).between(*pair)
        return voted_pairs(people, read_texts(name, people))
    models = (_served(name, pair[0]), _served(name, pair[1]))
    asked = answer_pairs(
        [prompt.messages for prompt in read_prompt_set(namespace.judge_prompts).prompts],
        url=namespace.router,
        models=models,
        api_key=os.environ.get(ROUTER_KEY) or None,
    )
    for number, fault in asked.faults[:_FAULTS_SHOWN]:
        _say(f"  prompt {number}: {fault}")
    if asked.faults:
        _say(f"{len(asked.faults)} of {len(asked.faults) + len(asked.pairs)} prompts have no two answers")
    return list(asked.pairs)


def _served(name: str, version: str) -> str:

    return BASE if version == BASE else f"{name}/{version}"


def _bring_over(name: str) -> None:
    """What this host's journal has and MLflow does not; told when it cannot be."""
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
    found = preferences(cast, read_texts(reading.model, cast))
    beside = write_preferences(path, found)
    _say(f"{path}: {len(found.rows)} preference rows, what they rest on in {beside.name}")
    for reason, turns in found.left_out.items():
        _say(f"  left out {turns}: {reason}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
