"""The JSON of OpenAI's graders: their types, their keys, and what is wrong with a grader, by its place in the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator

from mlflow_finetune_plugin.errors import unknown
from mlflow_finetune_plugin.rewards.graders.formula import FUNCTIONS, parse_formula
from mlflow_finetune_plugin.rewards.templates import parse_template
from mlflow_finetune_plugin.section import Section

SIMILARITIES = ("fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")
_WITHOUT = {
    "meteor": "needs the WordNet database, which would be downloaded",
    "cosine": "needs an embedding model, which would be downloaded",
}
_TEXT_PARTS = ("input_text", "output_text", "text")


def _check_template(text: str) -> str:
    parse_template(text)
    return text


class GraderJson(Section):
    """What all graders have."""

    type: str
    name: str = Field(min_length=1)


class StringCheckGrader(GraderJson):
    """Compare two texts."""

    type: Literal["string_check"]
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]

    _templates = field_validator("input", "reference")(_check_template)


class TextSimilarityGrader(GraderJson):
    """Measure how similar two texts are. ``pass_threshold`` is for OpenAI's evals; a reward is the similarity itself."""

    type: Literal["text_similarity"]
    input: str
    reference: str
    evaluation_metric: str
    pass_threshold: float | None = None

    _templates = field_validator("input", "reference")(_check_template)

    @field_validator("evaluation_metric")
    @classmethod
    def _is_available(cls, metric: str) -> str:
        if metric in _WITHOUT:
            raise ValueError(f"{metric} {_WITHOUT[metric]}; fix: pick one of: {', '.join(SIMILARITIES)}")
        if metric not in SIMILARITIES:
            raise ValueError(unknown("evaluation_metric", metric, list(SIMILARITIES)))
        return metric


class PythonGrader(GraderJson):
    """Run ``grade(sample, item)`` of a source text. ``image_tag`` chooses among OpenAI's machines and is not used."""

    type: Literal["python"]
    source: str = Field(min_length=1)
    image_tag: str | None = None

    @field_validator("source")
    @classmethod
    def _is_python(cls, source: str) -> str:
        try:
            compile(source, "source", "exec")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"is not Python: {error}") from error
        return source


class GraderMessage(Section):
    """A message to a score model. Its content is a template, or a list of text parts."""

    role: Literal["user", "assistant", "system", "developer"]
    content: Any
    type: Literal["message"] | None = None

    @field_validator("content")
    @classmethod
    def _is_text(cls, content: Any) -> str:
        """Join the parts of a content to one template."""
        parts = content if isinstance(content, list) else [content]
        texts: list[Any] = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS else part
            for part in parts
        ]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                "is not text; fix: use a text or input_text parts, because images and audio are not graded"
            )
        return _check_template("\n".join(texts))


class ScoreModelSampling(Section):
    """How the score model answers."""

    max_completions_tokens: Annotated[int, Field(ge=1)] | None = None
    reasoning_effort: str | None = None
    seed: int | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None


class ScoreModelGrader(GraderJson):
    """Ask a model for a score within a range."""

    type: Literal["score_model"]
    model: str = Field(min_length=1)
    input: list[GraderMessage] = Field(min_length=1)
    range: list[float] | None = Field(default=None, min_length=2, max_length=2)
    sampling_params: ScoreModelSampling | None = None
    pass_threshold: float | None = None

    @field_validator("range")
    @classmethod
    def _is_ascending(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError("must have its lowest number first")
        return bounds


class MultiGrader(GraderJson):
    """Combine graders with a formula."""

    type: Literal["multi"]
    graders: dict[str, Any] = Field(min_length=1)
    calculate_output: str


SingleGrader = StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader

_SINGLE: dict[str, type[StringCheckGrader | TextSimilarityGrader | PythonGrader | ScoreModelGrader]] = {
    "string_check": StringCheckGrader,
    "text_similarity": TextSimilarityGrader,
    "python": PythonGrader,
    "score_model": ScoreModelGrader,
}


class GraderFault(ValueError):
    """A grader is not valid. ``faults`` has a line for each problem, which begins with its place in the JSON."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("; ".join(faults))


def parse_grader(value: Any, place: str = "grader") -> SingleGrader | MultiGrader:
    """Return a checked grader.

    Raises:
        GraderFault: it is not valid.
    """
    if isinstance(value, Mapping) and value.get("type") == "multi":
        return _parse_multi(value, place)
    return _parse_single(value, place)


def inner_graders(grader: MultiGrader, place: str = "grader") -> dict[str, SingleGrader]:
    """Return the graders of a ``multi`` grader by their names in its formula. Raises GraderFault."""
    graders: dict[str, SingleGrader] = {}
    faults: list[str] = []
    for name, value in grader.graders.items():
        try:
            graders[name] = _parse_single(value, f"{place}.graders.{name}")
        except GraderFault as error:
            faults += error.faults
    if faults:
        raise GraderFault(faults)
    return graders


def grader_faults(value: Any) -> list[str]:
    """Return what is wrong with a grader, one line for each problem."""
    try:
        parse_grader(value)
    except GraderFault as error:
        return error.faults
    return []


def _parse_single(value: Any, place: str) -> SingleGrader:
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind not in _SINGLE:
        choices = [*_SINGLE, "multi"] if place == "grader" else list(_SINGLE)
        raise GraderFault([f"{place}.type: {unknown('grader type', str(kind), choices)}"])
    try:
        return _SINGLE[kind].model_validate(value)
    except ValidationError as error:
        raise GraderFault(_lines(error, place)) from error


def _parse_multi(value: Mapping[str, Any], place: str) -> MultiGrader:
    try:
        grader = MultiGrader.model_validate(value)
    except ValidationError as error:
        raise GraderFault(_lines(error, place)) from error
    graders = inner_graders(grader, place)
    wrong = [name for name in graders if not name.isidentifier() or name in FUNCTIONS]
    if wrong:
        raise GraderFault([f"{place}.graders.{name}: is not a name for a formula; fix: rename it" for name in wrong])
    try:
        parse_formula(grader.calculate_output, graders)
    except ValueError as error:
        raise GraderFault([f"{place}.calculate_output: {error}"]) from error
    return grader


def _lines(error: ValidationError, place: str) -> list[str]:
    return [
        f"{'.'.join([place, *map(str, problem['loc'])])}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    ]
