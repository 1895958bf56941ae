"""Templates of graders and judges: ``{{item.answer}}``, ``{{sample.output_text}}``, ``{{sample.output_json.steps[0]}}``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.rewards.completion import Completion

GRADER_ROOTS = ("item", "sample")
JUDGE_ROOTS = ("item", "sample", "prompt", "completion", "reference")

_FIELD = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]{}]+)|\[(\d{1,6})\]")
_PATH = re.compile(r"([A-Za-z_]\w*)((?:\.[^.\[\]{}]+|\[\d{1,6}\])*)")
_OF_SAMPLE = ("output_text", "output_json", "choices")


class MissingFieldError(Exception):
    """The row has no such value; the text names the field."""


class MissingOutputError(Exception):
    """The completion is not JSON, or its JSON has no such value; the text names the field."""


@dataclass(frozen=True)
class TemplateField:
    """A field of a template: the name at its beginning, then keys and indices."""

    text: str
    root: str
    steps: tuple[str | int, ...]


@dataclass(frozen=True)
class TextTemplate:
    """Texts and fields in their order."""

    parts: tuple[str | TemplateField, ...]

    @property
    def fields(self) -> list[TemplateField]:
        return [part for part in self.parts if isinstance(part, TemplateField)]

    def missing_columns(self, columns: Collection[str]) -> list[str]:
        """Return the columns that the template needs and the rows do not have."""
        known = {"messages", *columns}
        wanted = [str(field.steps[0]) for field in self.fields if field.root == "item" and field.steps]
        if any(field.root == "reference" for field in self.fields):
            wanted.append("reference")
        return [name for name in wanted if name not in known]

    def render(self, completion: Completion) -> str:
        """Return the text for one completion. Raises MissingFieldError, MissingOutputError."""
        return "".join(part if isinstance(part, str) else _text(_value(part, completion)) for part in self.parts)


def parse_template(text: str, roots: Collection[str] = GRADER_ROOTS) -> TextTemplate:
    """Parse a template.

    Raises:
        ValueError: a field is not one of ``roots`` with keys; the text says which fields there are.
    """
    return TextTemplate(tuple(_parts(text, roots)))


def _parts(text: str, roots: Collection[str]) -> Iterator[str | TemplateField]:
    at = 0
    for match in _FIELD.finditer(text):
        if match.start() > at:
            yield text[at : match.start()]
        yield _field(match[1].strip(), roots)
        at = match.end()
    if at < len(text):
        yield text[at:]


def _field(text: str, roots: Collection[str]) -> TemplateField:
    match = _PATH.fullmatch(text)
    root = match[1] if match else ""
    steps = tuple(key if key else int(index) for key, index in _STEP.findall(match[2])) if match else ()
    shown = f"{{{{{text[:60]}}}}}"
    if root not in roots:
        raise ValueError(
            f"{shown} is not a field; fix: begin it with one of: {', '.join(roots)}, as in {{{{item.answer}}}}"
        )
    if root == "item" and not steps:
        raise ValueError(f"{shown} names no column; fix: write {{{{item.COLUMN}}}}")
    if root == "sample" and (not steps or steps[0] not in _OF_SAMPLE):
        raise ValueError(
            f"{shown} is not part of a sample; fix: use one of: {', '.join(f'sample.{name}' for name in _OF_SAMPLE)}"
        )
    return TemplateField(shown, root, steps)


def _value(field: TemplateField, completion: Completion) -> Any:
    value = _root_value(field.root, completion)
    for step in field.steps:
        try:
            value = _step(value, step)
        except (KeyError, IndexError):
            if field.root == "sample":
                raise MissingOutputError(f"the completion has no {field.text}") from None
            columns = ", ".join(completion.item)
            raise MissingFieldError(
                f"the row has no {field.text}; its columns: {columns}; fix: correct the template"
            ) from None
    if field.root == "sample" and value is None:
        raise MissingOutputError(f"the completion has no {field.text}")
    return value


def _root_value(root: str, completion: Completion) -> Any:
    if root in ("item", "sample"):
        return completion.item if root == "item" else completion.sample
    if root == "reference":
        return _reference(completion)
    return completion.question if root == "prompt" else completion.text


def _step(value: Any, step: str | int) -> Any:
    if isinstance(step, str) and isinstance(value, Mapping):
        return value[step]
    if isinstance(step, int) and isinstance(value, (list, tuple)):
        return value[step]
    raise KeyError(step)


def _reference(completion: Completion) -> Any:
    if completion.fields.get("reference") is None:
        raise MissingFieldError("the row has no reference; fix: give the rows one, or remove {{reference}}")
    return completion.fields["reference"]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
