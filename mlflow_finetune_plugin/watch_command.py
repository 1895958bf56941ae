"""``mlflow-finetune watch``: is the champion still the one to have? Once, or again and again."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.durations import seconds_of
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.tracking import command_client
from mlflow_finetune_plugin.watch_schedule import Schedule, repeat

if TYPE_CHECKING:
    from mlflow_finetune_plugin.promotion.look_run import LookedThrough
    from mlflow_finetune_plugin.promotion.looks import Look


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


def _watch(namespace: argparse.Namespace) -> int:
    from mlflow_finetune_plugin.looking import (  # scipy and matplotlib are for who judges
        Watch,
        WatchCommand,
        given_policy,
    )
    from mlflow_finetune_plugin.promotion.looks import EXIT_CODES

    command = WatchCommand(
        name=namespace.name,
        policy=given_policy(namespace.policy),
        data=namespace.data,
        act=namespace.act,
        project=namespace.policy,
        base_model=namespace.base_model,
    )
    if namespace.times is not None and (namespace.every is None or namespace.times < 1):
        raise ConfigError([f"--times {namespace.times}: counts the looks of --every; fix: both, from 1 on"])
    watch = Watch(command_client(), command, lambda text: print(f"  {text}", file=sys.stderr, flush=True))

    def look_and_tell() -> int:
        seen, done = watch.look()
        _tell(namespace, seen, done)
        return EXIT_CODES[seen.verdict.outcome]

    if namespace.every is None:
        return look_and_tell()
    return repeat(look_and_tell, Schedule(namespace.every, namespace.times))


def _tell(namespace: argparse.Namespace, seen: Look, done: LookedThrough) -> None:
    from mlflow_finetune_plugin.promotion.watch_report import look_json, look_lines

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


def _seconds(given: str) -> float:
    try:
        return seconds_of(given)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
