"""The reward of a recipe: its parts, checked before anything is spent, and their weighted sum."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from mlflow_finetune_plugin.errors import ConfigError, RewardError
from mlflow_finetune_plugin.rewards.completion import Completion, PartScore, RewardScores
from mlflow_finetune_plugin.rewards.graders.grading import GraderContext, build_grader
from mlflow_finetune_plugin.rewards.graders.schema import parse_grader
from mlflow_finetune_plugin.rewards.part import ProcessPart, RewardPart
from mlflow_finetune_plugin.rewards.process import ScoringError, ScoringProcess, ScoringTarget
from mlflow_finetune_plugin.rewards.rating import judge_part
from mlflow_finetune_plugin.rewards.registered_model import RegisteredModelPart
from mlflow_finetune_plugin.rewards.settings import RewardSettings
from mlflow_finetune_plugin.rewards.user_files import file_faults, names_file, split_file

logger = logging.getLogger(__name__)

_FIX = "fix: handle such rows, or set on_error: skip"


@dataclass(frozen=True)
class NamedPart:
    """A part with its unique name, its settings, and where its code is, for messages."""

    name: str
    settings: RewardSettings
    origin: str
    part: RewardPart


class Rewards:
    """The parts of a reward. Use it as a context manager: entering starts the processes, leaving ends them.

    Attributes:
        names: The name of each part, unique.
        weights: The weight of each part.
    """

    def __init__(self, parts: Sequence[NamedPart]) -> None:
        self._parts = tuple(parts)
        self.names = tuple(part.name for part in parts)
        self.weights = tuple(part.settings.weight for part in parts)
        self._is_open = False

    def __enter__(self) -> Self:
        """Start what scores. Raises RewardError if a part cannot be started."""
        try:
            with _pool(self._parts) as pool:
                list(pool.map(_open, self._parts))
        except BaseException:
            self._close()
            raise
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._is_open = False
        for part in self._parts:
            part.part.close()

    def score(self, completions: Sequence[Completion]) -> RewardScores:
        """Score the completions with all parts at the same time.

        Raises:
            RewardError: a part failed on a row, and its ``on_error`` is ``fail``.
            RuntimeError: the context was not entered, or was left.
        """
        if not self._is_open:
            raise RuntimeError("the processes of these rewards do not run; fix: score inside of 'with rewards:'")
        with _pool(self._parts) as pool:
            columns = list(pool.map(lambda part: _scores_of(part, completions), self._parts))
        scores = dict(zip(self.names, columns, strict=True))
        for part in self._parts:
            self._raise_fault(part, completions, scores[part.name])
        parts = {name: [score.value for score in column] for name, column in scores.items()}
        return RewardScores(
            parts=parts,
            total=[self._total([parts[name][at] for name in self.names]) for at in range(len(completions))],
            reasons={name: [_reason(score) for score in column] for name, column in scores.items()},
            skipped=sum(score.fault is not None for column in columns for score in column),
        )

    def _raise_fault(self, part: NamedPart, completions: Sequence[Completion], scores: Sequence[PartScore]) -> None:
        faults = [
            (completion, score.fault) for completion, score in zip(completions, scores, strict=True) if score.fault
        ]
        if not faults:
            return
        completion, fault = faults[0]
        where = f"reward {part.name!r} ({part.origin}) failed at row {completion.row} ({completion.excerpt!r})"
        if part.settings.on_error == "fail":
            fix = "" if "fix: " in fault else f"; {_FIX}"
            raise RewardError(f"{where}: {fault}{fix}", part=part.name, row=completion.row)
        logger.warning("%s: %s; skipped, with %d of %d rows of this call", where, fault, len(faults), len(completions))

    def _total(self, values: Sequence[float | None]) -> float | None:
        weighted = [weight * value for weight, value in zip(self.weights, values, strict=True) if value is not None]
        return sum(weighted) if weighted else None


def load_rewards(
    settings: Sequence[RewardSettings], folder: Path, *, columns: Collection[str] | None = None
) -> Rewards:
    """Return the reward of a recipe, after everything that can be checked without a completion was checked.

    A user's file is imported in a process apart, which ends before this function returns.

    Args:
        settings: The parts.
        folder: The folder that files are relative to.
        columns: The columns of the rows; None: they are not known, and a missing one is an error of its first row.

    Raises:
        ConfigError: with every problem: a file that is missing or cannot be imported, a function that is missing or takes
            what no reward has, a grader or template that is not valid, a model that is not registered, a key that is not set.
    """
    faults = reward_faults(settings, folder)
    if faults:
        raise ConfigError(faults)
    names = part_names(settings)
    parts = [
        NamedPart(name, part, _origin(part), _build(part, folder.resolve()))
        for name, part in zip(names, settings, strict=True)
    ]
    with _pool(parts) as pool:
        checks = list(pool.map(lambda part: part.part.check(columns), parts))
    for index, (part, lines) in enumerate(zip(parts, checks, strict=True)):
        faults += [f"rewards[{index}] ({part.origin}): {line}" for line in lines]
    if faults:
        raise ConfigError(faults)
    return Rewards(parts)


def reward_faults(settings: Sequence[RewardSettings], folder: Path) -> list[str]:
    """Return what is wrong with the parts, as far as it can be seen without starting a process or asking a server."""
    faults = [] if settings else ["rewards is empty; fix: name at least one part, for example reward.py:score"]
    given = Counter(part.name for part in settings if part.name is not None)
    faults += [
        f"rewards: {count} parts have the name {name!r}; fix: rename them" for name, count in given.items() if count > 1
    ]
    faults += _same_names(settings, folder)
    for index, part in enumerate(settings):
        place = f"rewards[{index}].{part.kind}"
        if part.python is not None:
            faults += [f"{place}: {fault}" for fault in file_faults(part.python, folder)]
        elif part.scorer is not None and names_file(part.scorer):
            faults += [f"{place}: {fault}" for fault in file_faults(part.scorer, folder, needs_name=True)]
        elif part.scorer is not None and "." not in part.scorer:
            faults.append(
                f"{place}: {part.scorer!r} is not a scorer; fix: use mlflow.genai.scorers.NAME or FILE.py:NAME"
            )
        for variable in part.env:
            if variable not in os.environ:
                faults.append(f"rewards[{index}].env: {variable} is not set; fix: set it, or remove it from env")
    return faults


def _same_names(settings: Sequence[RewardSettings], folder: Path) -> list[str]:
    """Return the names that several files have. A run records the files side by side, by their names."""
    named = [part.python or (part.scorer if part.scorer and names_file(part.scorer) else None) for part in settings]
    files = {(folder / split_file(text)[0]).resolve() for text in named if text}
    shared = sorted(name for name, count in Counter(path.name for path in files).items() if count > 1)
    return [f"rewards: different files have the name {name}; fix: rename one of them" for name in shared]


def _pool(parts: Sequence[NamedPart]) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, len(parts)))


def _open(part: NamedPart) -> None:
    try:
        part.part.open()
    except ScoringError as error:
        message = f"reward {part.name!r} ({part.origin}) cannot be started: {error}"
        raise RewardError(message, part=part.name) from error


def _scores_of(part: NamedPart, completions: Sequence[Completion]) -> list[PartScore]:
    if not completions:
        return []
    return part.part.score(completions, until_fault=part.settings.on_error == "fail")


def _reason(score: PartScore) -> str | None:
    return f"skipped: {score.fault}" if score.fault else score.reason


def _build(settings: RewardSettings, folder: Path) -> RewardPart:
    timeout_s, env = settings.timeout_s, tuple(settings.env)
    if settings.grader is not None:
        return build_grader(parse_grader(settings.grader), GraderContext(folder, timeout_s, env, settings.endpoint))
    if settings.judge is not None:
        return judge_part(settings.judge, timeout_s)
    if settings.model is not None:
        return RegisteredModelPart(settings.model, folder=folder, timeout_s=timeout_s, env=env)
    return ProcessPart(ScoringProcess(_target(settings, folder), folder=folder, env=env))


def _target(settings: RewardSettings, folder: Path) -> ScoringTarget:
    if settings.python is not None:
        file, name = split_file(settings.python)
        gets_messages = settings.completions == "messages"
        return ScoringTarget(
            "function", str(folder / file), name, gets_messages=gets_messages, timeout_s=settings.timeout_s
        )
    scorer = settings.scorer or ""
    file, name = split_file(scorer) if names_file(scorer) else ("", scorer)
    path = str(folder / file) if file else ""
    return ScoringTarget("scorer", path, name, arguments=settings.args, timeout_s=settings.timeout_s)


def _origin(settings: RewardSettings) -> str:
    """Return what a user recognises a part by."""
    if settings.grader is not None:
        return f"grader {settings.grader['type']}"
    if settings.judge is not None:
        return f"judge {settings.judge.model}"
    return settings.python or settings.scorer or settings.model or ""


def part_names(settings: Sequence[RewardSettings]) -> list[str]:
    """Return a unique name for each part: its own, or one made of its function, grader, scorer or model."""
    names: list[str] = []
    taken = {part.name for part in settings if part.name is not None}
    for part in settings:
        name = part.name or _usual_name(part)
        number = 2
        while part.name is None and (name in taken or name in names):
            name, number = f"{_usual_name(part)}_{number}", number + 1
        names.append(name)
    return names


def _usual_name(settings: RewardSettings) -> str:
    if settings.python is not None or settings.scorer is not None:
        file, name = split_file(settings.python or settings.scorer or "")
        text = name or (Path(file).stem if settings.python is not None else file.rpartition(".")[2])
    elif settings.grader is not None:
        text = str(settings.grader["name"])
    elif settings.model is not None:
        text = settings.model.removeprefix("models:/")
    else:
        text = "judge"
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)[:100] or "reward"
