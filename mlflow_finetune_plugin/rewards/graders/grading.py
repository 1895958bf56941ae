"""Score completions with graders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import MissingExtraError
from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.graders.formula import Formula, parse_formula
from mlflow_finetune_plugin.rewards.graders.schema import (
    MultiGrader,
    PythonGrader,
    ScoreModelGrader,
    SingleGrader,
    StringCheckGrader,
    TextSimilarityGrader,
    inner_graders,
)
from mlflow_finetune_plugin.rewards.graders.text_similarity import similarity
from mlflow_finetune_plugin.rewards.part import ProcessPart, RewardPart
from mlflow_finetune_plugin.rewards.process import ScoringProcess, ScoringTarget
from mlflow_finetune_plugin.rewards.rating import Rating, RatingPart
from mlflow_finetune_plugin.rewards.settings import ChatEndpoint
from mlflow_finetune_plugin.rewards.templates import (
    MissingFieldError,
    MissingOutputError,
    TextTemplate,
    parse_template,
)

_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}
_UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class GraderContext:
    """What graders need beside their JSON."""

    folder: Path
    timeout_s: float
    env: tuple[str, ...] = ()
    endpoint: ChatEndpoint | None = None


def build_grader(grader: SingleGrader | MultiGrader, context: GraderContext) -> RewardPart:
    """Return the part that scores with a grader."""
    if isinstance(grader, MultiGrader):
        parts = {name: build_grader(inner, context) for name, inner in inner_graders(grader).items()}
        return MultiPart(parts, parse_formula(grader.calculate_output, parts))
    if isinstance(grader, PythonGrader):
        target = ScoringTarget("source", source=grader.source, timeout_s=context.timeout_s)
        return ProcessPart(ScoringProcess(target, folder=context.folder, env=context.env))
    if isinstance(grader, ScoreModelGrader):
        return _score_model(grader, context)
    return TextPart(grader)


@dataclass
class TextPart:
    """A ``string_check`` or a ``text_similarity``, computed here."""

    grader: StringCheckGrader | TextSimilarityGrader
    _input: TextTemplate = field(init=False)
    _reference: TextTemplate = field(init=False)

    def __post_init__(self) -> None:
        self._input = parse_template(self.grader.input)
        self._reference = parse_template(self.grader.reference)

    def check(self, columns: Collection[str] | None) -> list[str]:
        """Return what is wrong; see ``RewardPart``."""
        faults = _column_faults([self._input, self._reference], columns)
        try:
            self._function()
        except MissingExtraError as error:
            faults.append(str(error))
        return faults

    def open(self) -> None:
        """Nothing to open."""

    def close(self) -> None:
        """Nothing to close."""

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Score the completions; see ``RewardPart``."""
        function = self._function()
        return [self._score_one(function, completion) for completion in completions]

    def _score_one(self, function: Callable[[str, str], float], completion: Completion) -> PartScore:
        try:
            text, reference = self._input.render(completion), self._reference.render(completion)
        except MissingOutputError as error:
            return PartScore(0.0, str(error))
        except MissingFieldError as error:
            return PartScore(fault=str(error))
        return PartScore(float(function(text, reference)))

    def _function(self) -> Callable[[str, str], float]:
        if isinstance(self.grader, StringCheckGrader):
            return _CHECKS[self.grader.operation]
        return similarity(self.grader.evaluation_metric)


@dataclass
class MultiPart:
    """Graders and the formula that combines their scores."""

    parts: dict[str, RewardPart]
    formula: Formula

    def check(self, columns: Collection[str] | None) -> list[str]:
        """Return what is wrong; see ``RewardPart``."""
        return [f"graders.{name}: {fault}" for name, part in self.parts.items() for fault in part.check(columns)]

    def open(self) -> None:
        """Open the graders; see ``RewardPart``."""
        for part in self.parts.values():
            part.open()

    def close(self) -> None:
        """Close the graders."""
        for part in self.parts.values():
            part.close()

    def score(self, completions: Sequence[Completion], *, until_fault: bool = False) -> list[PartScore]:
        """Score the completions; see ``RewardPart``."""
        scores = {name: part.score(completions, until_fault=until_fault) for name, part in self.parts.items()}
        return [self._combine({name: each[at] for name, each in scores.items()}) for at in range(len(completions))]

    def _combine(self, scores: dict[str, PartScore]) -> PartScore:
        for name, score in scores.items():
            if score.fault:
                return PartScore(fault=f"grader {name}: {score.fault}")
        values = {name: score.value for name, score in scores.items() if score.value is not None}
        if len(values) < len(scores):
            return PartScore(reason=f"no score of {', '.join(name for name in scores if name not in values)}")
        reason = ", ".join(f"{name} {value:g}" for name, value in values.items())
        try:
            return PartScore(self.formula.value(values), reason)
        except (ArithmeticError, ValueError) as error:
            return PartScore(fault=f"calculate_output {self.formula.text!r} has no value for {reason}: {error}")


def _score_model(grader: ScoreModelGrader, context: GraderContext) -> RewardPart:
    templates = [(message.role, parse_template(message.content)) for message in grader.input]
    bounds = (grader.range[0], grader.range[1]) if grader.range else _UNIT
    parameters = grader.sampling_params.model_dump(exclude_none=True) if grader.sampling_params else {}
    longest = parameters.pop("max_completions_tokens", None)
    parameters |= {} if longest is None else {"max_tokens": longest}
    rule = f'Reply with a JSON object {{"result": NUMBER}} and nothing after it. NUMBER is from {bounds[0]:g} to {bounds[1]:g}.'

    def body(completion: Completion) -> dict[str, Any]:
        messages = [
            {"role": "system" if role == "developer" else role, "content": template.render(completion)}
            for role, template in templates
        ]
        return {"model": grader.model, "messages": _with_rule(messages, rule), **parameters}

    needed = [template for _, template in templates]
    rating = Rating(body, bounds, missing_output=bounds[0])
    return RatingPart(rating, context.endpoint, context.timeout_s, lambda columns: _column_faults(needed, columns))


def _with_rule(messages: list[dict[str, str]], rule: str) -> list[dict[str, str]]:
    """Add how to reply to the first system message, because some servers take no other."""
    if messages[0]["role"] == "system":
        first = {"role": "system", "content": f"{messages[0]['content']}\n\n{rule}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": rule}, *messages]


def _column_faults(templates: Sequence[TextTemplate], columns: Collection[str] | None) -> list[str]:
    if columns is None:
        return []
    missing = sorted({name for template in templates for name in template.missing_columns(columns)})
    has = ", ".join(sorted(columns)) or "none"
    return [f"the rows have no column {name!r}; their columns: {has}; fix: correct the template" for name in missing]
