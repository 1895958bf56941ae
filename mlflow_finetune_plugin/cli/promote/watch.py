"""``mlflow-finetune watch``."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from mlflow_finetune_plugin.cli.output import base_model_option, json_option, note
from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError
from mlflow_finetune_plugin.store.clients import command_client

_FAILED = 2

_STEP_S = 0.2

if TYPE_CHECKING:
    from mlflow_finetune_plugin.watch.carry_out import LookedThrough
    from mlflow_finetune_plugin.watch.check import Look


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            return seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, context)


@click.command()
@click.argument("name")
@click.option("--data", metavar="FILE", help="New rows with answers; read again at each check.")
@click.option("--every", type=_Duration(), metavar="DURATION", help="Repeat the check: 90s, 30m, 6h, 1d.")
@click.option("--times", type=int, metavar="N", help="Number of checks with --every (default: until Ctrl-C).")
@click.option("--act", is_flag=True, help="Roll back when that is the verdict.")
@click.option(
    "--policy",
    metavar="DIR",
    help="Project whose register.watch applies, and whose data section says how --data is read.",
)
@base_model_option
@json_option
def watch(
    name: str,
    data: str | None,
    every: float | None,
    times: int | None,
    act: bool,
    policy: str | None,
    base_model: str | None,
    as_json: bool,
) -> int:
    """Check whether the champion is still the best version.

    Exit code 0: keep; 3: re-tune; 4: roll back.
    """
    from mlflow_finetune_plugin.watch.check import EXIT_CODES
    from mlflow_finetune_plugin.watch.watch import Watch, WatchCommand, given_policy

    command = WatchCommand(
        name=name, policy=given_policy(policy), data=data, act=act, project=policy, base_model=base_model
    )
    if times is not None and (every is None or times < 1):
        raise ConfigError([f"--times {times}: counts the checks of --every; fix: give both, and at least 1"])
    watcher = Watch(command_client(), command, note)

    def check_and_print() -> int:
        check, recorded = watcher.look()
        _print_check(name, check, recorded, as_json=as_json, is_repeated=every is not None)
        return EXIT_CODES[check.verdict.outcome]

    return check_and_print() if every is None else repeat(check_and_print, Schedule(every, times))


def _print_check(name: str, check: Look, recorded: LookedThrough, *, as_json: bool, is_repeated: bool) -> None:
    from mlflow_finetune_plugin.watch.report import look_json, look_lines

    if as_json:
        print(look_json(check, indent=None if is_repeated else 1), flush=True)
        return
    lines = [*look_lines(check), f"  report        run {recorded.run_id}, report.html"]
    if recorded.move is not None:
        lines.append(f"  rolled back   {recorded.move.text}")
    elif check.verdict.outcome == "roll back":
        lines.append(f"  to do         mlflow-finetune rollback {name} (watch --act does it); nothing was moved")
    elif check.verdict.outcome == "re-tune":
        lines.append("  to do         train a new version on newer rows, then promote it; nothing was moved")
    print("\n".join(lines), flush=True)
    if recorded.move is not None and recorded.move.unrecorded is not None:
        print(
            "mlflow-finetune: the alias was moved, but its record could not be written: "
            f"{recorded.move.unrecorded}; fix: that, then mlflow-finetune history {name}",
            file=sys.stderr,
        )


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
