"""An MLflow scorer: one of ``mlflow.genai.scorers``, or a ``@scorer`` function of a file. It runs in the scoring process."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process.child import Emit, LoadFaultError, fault_of, import_file
from mlflow_finetune_plugin.rewards.process.result import NotANumberError, number_of
from mlflow_finetune_plugin.rewards.process.target import Description, ScoringTarget

_YES_OR_NO = {"yes": 1.0, "no": 0.0}
_PASSED = ("inputs", "outputs", "expectations")


def load_scorer(target: ScoringTarget) -> MlflowScorer:
    """Import a scorer; a class is called with the arguments of the target.

    Raises:
        LoadFaultError: there is no such scorer, or it needs a trace or a session.
    """
    from mlflow.genai.scorers import Scorer

    value = _find(target)
    if isinstance(value, type) and issubclass(value, Scorer):
        value = value(**target.arguments)
    elif target.arguments:
        raise LoadFaultError(
            f"{target.name} is a scorer already and takes no arguments; fix: remove {', '.join(target.arguments)}"
        )
    if not isinstance(value, Scorer):
        raise LoadFaultError(
            f"{target.name} is of type {type(value).__name__}, not an MLflow scorer; fix: decorate it with @scorer, or use python:"
        )
    return MlflowScorer(value, target.path)


def _find(target: ScoringTarget) -> Any:
    if target.path:
        owner, name = import_file(target.path), target.name
    else:
        module, _, name = target.name.rpartition(".")
        owner = importlib.import_module(module)
    if not hasattr(owner, name):
        raise LoadFaultError(f"{owner.__name__} has no {name!r}; fix: correct the name")
    return getattr(owner, name)


class MlflowScorer:
    """A scorer, called with the inputs, outputs and expectations of one completion at a time."""

    def __init__(self, scorer: Any, file: str) -> None:
        self.file = file
        self._scorer = scorer
        parameters = inspect.signature(scorer.__call__).parameters
        self._parameters = [name for name in _PASSED if name in parameters]
        self.description = Description("row", scorer.name)
        self._check(parameters.values())

    def _check(self, parameters: Any) -> None:
        if self._scorer.is_session_level_scorer:
            raise LoadFaultError(
                f"{self._scorer.name} scores sessions, and a reward has single answers; fix: use another scorer"
            )
        needed = [
            p.name for p in parameters if p.default is p.empty and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        missing = [name for name in needed if name not in _PASSED]
        if missing:
            raise LoadFaultError(
                f"{self._scorer.name} needs {', '.join(missing)}, and a reward has {', '.join(_PASSED)}; fix: use another scorer"
            )

    def score(self, completions: Sequence[Completion], emit: Emit) -> None:
        """Score the completions; see ``LoadedTarget``."""
        for position, completion in enumerate(completions):
            try:
                score = feedback_score(self._scorer(**self._arguments(completion)))
            except NotANumberError as error:
                score = PartScore(fault=str(error))
            except BaseException as error:  # the user's code
                score = PartScore(fault=fault_of(error, self.file))
            emit(position, score)

    def _arguments(self, completion: Completion) -> dict[str, Any]:
        columns = {name: value for name, value in completion.fields.items() if name != "reference"}
        reference = completion.fields.get("reference")
        expected = {} if reference is None else {"expected_response": reference}
        values = {
            "inputs": {"messages": completion.prompt},
            "outputs": completion.text,
            "expectations": {**expected, **columns},
        }
        return {name: values[name] for name in self._parameters}


def feedback_score(result: Any) -> PartScore:
    """Read what a scorer returned: a bool, a number, yes or no, a Feedback, or a list of Feedbacks, whose mean counts."""
    if isinstance(result, list):
        scores = [feedback_score(each) for each in result]
        values = [score.value for score in scores if score.value is not None]
        reasons = [score.reason for score in scores if score.reason]
        return PartScore(sum(values) / len(values) if values else None, "; ".join(reasons) or None)
    if hasattr(result, "rationale"):
        if getattr(result, "error", None) is not None:
            raise NotANumberError(f"returned a Feedback with the error {str(result.error)[:300]}")
        return PartScore(_value(result.value), result.rationale)
    return PartScore(_value(result))


def _value(value: Any) -> float | None:
    if isinstance(value, str):
        word = str(getattr(value, "value", value)).strip().lower()
        if word not in _YES_OR_NO:
            raise NotANumberError(f"returned {word[:60]!r}; fix: return a number, a bool, 'yes' or 'no'")
        return _YES_OR_NO[word]
    return number_of(value)
