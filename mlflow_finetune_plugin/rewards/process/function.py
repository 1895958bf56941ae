"""A user's Python function: its form, its arguments by name, and its result as a number. It runs in the scoring process."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process.child import Emit, LoadFaultError, fault_of, import_file
from mlflow_finetune_plugin.rewards.process.result import NotANumberError, score_of
from mlflow_finetune_plugin.rewards.process.target import Description, ScoringTarget

_SOURCE = "grader source"
_USUAL_NAMES = ("score", "reward", "compute_score", "grade")
_BATCH = frozenset({"prompts", "completions"})
_ROW = frozenset({"prompt", "completion", "messages", "reference", "item", "fields", "sample"})
_VERL = frozenset({"data_source", "solution_str", "ground_truth", "extra_info"})
_OF_THE_TRAINER = frozenset(
    {"completion_ids", "prompt_ids", "trainer_state", "log_extra", "log_metric", "environments"}
)
_AT_ONCE = 16

Values = Mapping[str, Any]


def load_function(target: ScoringTarget) -> UserFunction:
    """Import the function of a file, or run a source that defines ``grade(sample, item)``.

    Raises:
        LoadFaultError: there is no such function, or it cannot be called with what a reward has.
    """
    if target.kind == "source":
        module = types.ModuleType("grader_source")
        linecache.cache[_SOURCE] = (len(target.source), None, target.source.splitlines(keepends=True), _SOURCE)
        exec(compile(target.source, _SOURCE, "exec"), module.__dict__)
        function = module.__dict__.get("grade")
        if not callable(function):
            raise LoadFaultError("the source defines no function grade(sample, item); fix: name it so")
        return UserFunction(function, target, _SOURCE)
    module = import_file(target.path)
    name = target.name or _only_function(module, target.path)
    function = getattr(module, name, None)
    if function is None:
        raise LoadFaultError(
            f"{target.path} has no {name!r}; it has: {_listed(_functions(module))}; fix: FILE:FUNCTION"
        )
    if not callable(function):
        raise LoadFaultError(f"{name!r} in {target.path} is of type {type(function).__name__}, not a function")
    return UserFunction(function, target, target.path)


class UserFunction:
    """A function that scores a row or, in TRL's form, a batch."""

    def __init__(self, function: Callable[..., Any], target: ScoringTarget, file: str) -> None:
        self.file = file
        self._function = function
        self._gets_messages = target.gets_messages
        self._timeout_s = target.timeout_s
        self._runner = asyncio.Runner()
        self._parameters = _parameters(function)
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in self._parameters.values())
        name = getattr(function, "__name__", type(function).__name__)
        is_batch = bool(_BATCH & set(self._parameters))
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004  # of an object with an async __call__
        )
        columns = tuple(self._needed(_BATCH if is_batch else _ROW | self._verl_names()))
        self.description = Description("batch" if is_batch else "row", name, columns, self._is_async)
        self._check(name, is_batch)

    def _check(self, name: str, is_batch: bool) -> None:
        names = {key for key, p in self._parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        wanted = "completion, or completions for the batch form"
        if is_batch and _ROW & names - {"reference"}:
            mixed = _listed(names & (_ROW | _BATCH))
            raise LoadFaultError(f"{name}() takes {mixed}, names of one row and of a batch; fix: take {wanted}")
        if is_batch and "completions" not in names:
            raise LoadFaultError(f"{name}() takes prompts and not completions; fix: take {wanted}")
        if not is_batch and not names & {"completion", "sample", "solution_str"}:
            raise LoadFaultError(f"{name}() takes ({_listed(self._parameters)}), and no completion; fix: take {wanted}")
        positional = [key for key, p in self._parameters.items() if p.kind is p.POSITIONAL_ONLY]
        if positional:
            raise LoadFaultError(f"{name}() takes {_listed(positional)} by position only; fix: remove the '/'")
        unavailable = set(self.description.columns) & _OF_THE_TRAINER
        if unavailable:
            raise LoadFaultError(
                f"{name}() needs {_listed(unavailable)}, which belong to the trainer's process and are not passed; "
                "fix: remove them, or give them the default None"
            )

    def _verl_names(self) -> frozenset[str]:
        return _VERL if "solution_str" in self._parameters else frozenset()

    def _needed(self, available: frozenset[str]) -> list[str]:
        """Return the parameters without a default that only a column can fill."""
        variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        return [
            name
            for name, p in self._parameters.items()
            if p.default is p.empty and p.kind not in variable and name not in available and name != "reference"
        ]

    def score(self, completions: Sequence[Completion], emit: Emit) -> None:
        """Score the completions; see ``LoadedTarget``."""
        if self.description.form == "batch":
            self._score_batch(completions, emit)
        elif self._is_async:
            self._runner.run(self._score_at_once(completions, emit))
        else:
            for position, completion in enumerate(completions):
                emit(position, self._score_row(completion))

    def _score_row(self, completion: Completion) -> PartScore:
        try:
            result = self._function(**self._row_arguments(completion))
            if inspect.isawaitable(result):
                result = self._runner.run(self._limited(result))
            return score_of(result)
        except BaseException as error:  # the user's code; also SystemExit, which would end this process
            return PartScore(fault=self._fault(error))

    async def _score_at_once(self, completions: Sequence[Completion], emit: Emit) -> None:
        places = asyncio.Semaphore(_AT_ONCE)

        async def score(position: int, completion: Completion) -> None:
            async with places:
                try:
                    arguments = self._row_arguments(completion)
                    emit(position, score_of(await self._limited(self._function(**arguments))))
                except BaseException as error:
                    emit(position, PartScore(fault=self._fault(error)))

        await asyncio.gather(*(score(position, completion) for position, completion in enumerate(completions)))

    async def _limited(self, awaitable: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                return await awaitable
        except TimeoutError:
            if not limit.expired():
                raise
            raise NotANumberError(f"no result within {self._timeout_s:g} s (timeout_s)") from None

    def _score_batch(self, completions: Sequence[Completion], emit: Emit) -> None:
        results = self._function(**self._batch_arguments(completions))
        if inspect.isawaitable(results):
            results = self._runner.run(self._limited(results))
        results = _as_list(results)
        if len(results) != len(completions):
            raise NotANumberError(
                f"returned {len(results)} values for {len(completions)} completions; fix: one for each"
            )
        for position, result in enumerate(results):
            try:
                score = score_of(result)
            except NotANumberError as error:
                score = PartScore(fault=self._fault(error))
            emit(position, score)

    def _fault(self, error: BaseException) -> str:
        return str(error) if isinstance(error, NotANumberError) else fault_of(error, self.file)

    def _row_arguments(self, completion: Completion) -> dict[str, Any]:
        answer = [{"role": "assistant", "content": completion.text}]
        values: dict[str, Any] = {**completion.fields}
        values |= {
            "prompt": completion.prompt if self._gets_messages else completion.question,
            "completion": answer if self._gets_messages else completion.text,
            "messages": completion.prompt,
            "reference": completion.fields.get("reference"),
            "item": completion.item,
            "fields": completion.fields,
            "sample": completion.sample,
        }
        if self._verl_names():
            values |= _verl_values(completion)
        return self._pick(values, {*completion.fields, *(_VERL & set(values) if self._verl_names() else ())})

    def _batch_arguments(self, completions: Sequence[Completion]) -> dict[str, Any]:
        columns = {name for completion in completions for name in completion.fields}
        values: dict[str, Any] = {name: [each.fields.get(name) for each in completions] for name in columns}
        values.setdefault("reference", [None] * len(completions))
        if self._gets_messages:
            values["prompts"] = [each.prompt for each in completions]
            values["completions"] = [[{"role": "assistant", "content": each.text}] for each in completions]
        else:
            values["prompts"] = [each.question for each in completions]
            values["completions"] = [each.text for each in completions]
        return self._pick(values, columns | _BATCH)

    def _pick(self, values: Values, columns: set[str] | frozenset[str]) -> dict[str, Any]:
        """Return the arguments of a call: those that the function names, and the columns for ``**kwargs``."""
        missing = [name for name in self.description.columns if name not in values]
        if missing:
            has = _listed(sorted(columns - _BATCH - _VERL)) or "none"
            raise NotANumberError(
                f"the row has no column {_listed(missing)}; its columns: {has}; fix: correct the parameter's name"
            )
        return {
            name: value
            for name, value in values.items()
            if name in self._parameters or (self._takes_all and name in columns)
        }


def _verl_values(completion: Completion) -> dict[str, Any]:
    fields = completion.fields
    nested = fields.get("reward_model")
    truth = nested.get("ground_truth") if isinstance(nested, Mapping) else None
    return {
        "data_source": fields.get("data_source"),
        "solution_str": completion.text,
        "ground_truth": fields.get("ground_truth", truth if truth is not None else fields.get("reference")),
        "extra_info": fields.get("extra_info") or {},
    }


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise LoadFaultError(
            f"the parameters of {function!r} cannot be read ({error}); fix: wrap it in a def"
        ) from error


def _as_list(results: Any) -> list[Any]:
    if hasattr(results, "tolist"):  # numpy and torch
        results = results.tolist()
    if not isinstance(results, (list, tuple)):
        raise NotANumberError(
            f"returned {type(results).__name__}, not a list; fix: return one number for each completion"
        )
    return list(results)


def _functions(module: types.ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    ]


def _only_function(module: types.ModuleType, path: str) -> str:
    functions = _functions(module)
    usual = [name for name in _USUAL_NAMES if name in functions]
    if len(functions) == 1:
        return functions[0]
    if len(usual) == 1:
        return usual[0]
    raise LoadFaultError(f"{path} has {len(functions)} functions ({_listed(functions)}); fix: name one: FILE:FUNCTION")


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))
