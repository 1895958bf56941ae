"""``mlflow-finetune watch``: is the champion still the one to have? Once, or again and again."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError
from mlflow_finetune_plugin.store.clients import command_client

_FAILED = 2

_STEP_S = 0.2

if TYPE_CHECKING:
    from mlflow_finetune_plugin.watch.carry_out import LookedThrough
    from mlflow_finetune_plugin.watch.check import Look


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
    from mlflow_finetune_plugin.watch.check import EXIT_CODES
    from mlflow_finetune_plugin.watch.watch import Watch, WatchCommand, given_policy

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
    from mlflow_finetune_plugin.watch.report import look_json, look_lines

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


@dataclass(frozen=True)
class Schedule:
    """Seconds from one look's start to the next one's; looks in all, None: no end."""

    every_s: float
    times: int | None = None


@dataclass
class _End:
    """Whether somebody has asked for the end: by Ctrl-C, which ends between two looks, or twice, at once; or by SIGTERM."""

    is_asked: bool = False

    def ask(self, *_: object) -> None:
        if self.is_asked:
            raise KeyboardInterrupt
        self.is_asked = True


def repeat(look: Callable[[], int], schedule: Schedule) -> int:
    """``look`` gives the exit code of one look; the last one's is returned, 2 where that one failed.

    A look's FinetuneError is told on stderr, a registry that is away among them, and the next look comes.
    """
    code, done = 0, 0
    with _listening() as end:
        while not end.is_asked:
            started = time.monotonic()
            try:
                code = look()
            except FinetuneError as error:
                code = _FAILED
                print(f"mlflow-finetune: {time.strftime('%Y-%m-%d %H:%M:%S')}: {error}", file=sys.stderr, flush=True)
            done += 1
            if done == schedule.times:
                break
            while not end.is_asked and time.monotonic() < started + schedule.every_s:
                time.sleep(_STEP_S)
    return code


@contextmanager
def _listening() -> Iterator[_End]:
    end = _End()
    before = {number: signal.signal(number, end.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
