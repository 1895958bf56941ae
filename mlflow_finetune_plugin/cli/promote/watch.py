"""``mlflow-finetune watch``."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

from mlflow_finetune_plugin.cli.output import base_model_option, json_option, note, trust_code_option
from mlflow_finetune_plugin.cli.promote.printing import print_unrecorded, print_verdict
from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError

_FAILED = 2

_STEP_S = 0.2


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
@click.argument("model")
@click.option(
    "--data",
    metavar="FILE",
    help="New rows with answers, in the layout and columns of the training; read again at each check.",
)
@click.option("--every", type=_Duration(), metavar="DURATION", help="Repeat the check: 90s, 30m, 6h, 1d.")
@click.option("--times", type=int, metavar="N", help="Number of checks with --every (default: until Ctrl-C).")
@click.option("--act", is_flag=True, help="Roll back when that is the verdict.")
@click.option(
    "--policy",
    metavar="DIR",
    help="Project whose register.watch applies, and whose data.layout and data.columns, if it has them, "
    "say how --data is read.",
)
@base_model_option
@trust_code_option
@json_option
def watch(
    model: str,
    data: str | None,
    every: float | None,
    times: int | None,
    act: bool,
    policy: str | None,
    base_model: str | None,
    trust_code: bool,
    as_json: bool,
) -> int:
    """Check whether the champion is still the best version.

    Exit code 0: keep; 3: re-tune; 4: roll back.
    """
    from mlflow_finetune_plugin.watch.request import Watch, WatchOptions

    if times is not None and (every is None or times < 1):
        raise ConfigError([f"--times {times}: counts the checks of --every; fix: give both, and at least 1"])
    options = WatchOptions(data=data, act=act, project=policy, base_model=base_model, trust_code=trust_code)
    checks = Watch(model, options, say=note)

    def check_and_print() -> int:
        result = checks.check()
        if as_json:
            indent = None if every is not None else 1  # one line per check can be read as JSON Lines
            print(json.dumps(result.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False), flush=True)
        else:
            print_verdict(result.text(), result.exit_code)
        print_unrecorded(result.move)
        return result.exit_code

    return check_and_print() if every is None else repeat(check_and_print, Schedule(every, times))


@dataclass(frozen=True)
class Schedule:
    """When checks are repeated.

    Args:
        every_s: Seconds from the start of one check to the start of the next.
        times: Number of checks; None means no end.
    """

    every_s: float
    times: int | None = None


@dataclass
class _End:
    """Whether the user asked for the end. Ctrl-C and SIGTERM end between two checks; a second signal ends at once."""

    is_requested: bool = False

    def request(self, *_: object) -> None:
        if self.is_requested:
            raise KeyboardInterrupt
        self.is_requested = True


def repeat(check: Callable[[], int], schedule: Schedule) -> int:
    """Repeat a check. Its FinetuneError, for example of a registry that does not answer, is printed, and the checks
    continue.

    Args:
        check: Carries out one check and returns its exit code.
        schedule: When the check is repeated.

    Returns:
        The exit code of the last check; 2 where that one failed.
    """
    code, checks = 0, 0
    with _signals() as end:
        while not end.is_requested:
            started = time.monotonic()
            try:
                code = check()
            except FinetuneError as error:
                code = _FAILED
                print(f"mlflow-finetune: {time.strftime('%Y-%m-%d %H:%M:%S')}: {error}", file=sys.stderr, flush=True)
            checks += 1
            if checks == schedule.times:
                break
            while not end.is_requested and time.monotonic() < started + schedule.every_s:
                time.sleep(_STEP_S)
    return code


@contextmanager
def _signals() -> Iterator[_End]:
    end = _End()
    before = {number: signal.signal(number, end.request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
