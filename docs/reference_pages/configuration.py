"""The page on ``finetune.yaml`` and on the backend config: every key with its type, default and meaning."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from mlflow_finetune_plugin.config.problems import expected
from mlflow_finetune_plugin.config.reference import default_text, headline
from mlflow_finetune_plugin.config.run_config import SECTIONS
from mlflow_finetune_plugin.methods import Kind, load_method, method_names
from mlflow_finetune_plugin.submission.backend_config import BackendSettings
from reference_pages.markdown import code, page, sentence, table

_KINDS: tuple[Kind, ...] = ("adaptation", "objective")
_INTRODUCTION = """
`finetune.yaml` is the recipe of a project. Only `data` is required. Every key can be overridden for one run with
`-P KEY=VALUE`; see [entry points](entry-points.md). Relative paths in the file start at the file, and those in `-P` start at
the current directory.

All problems of a configuration are reported in one error, each with its line, before any work starts. A key with the default
`auto` is decided by the plan, which logs the value and the reason.

The [JSON Schema](../finetune.schema.json) lets an editor complete and check the file; `mlflow-finetune schema` prints it.

```yaml
# yaml-language-server: $schema=finetune.schema.json
base_model: ./my-base        # the same as {name: ./my-base}
data:
  train: data/train.jsonl    # `data: data/train.jsonl` is the same
  eval: data/held_out.jsonl
options:
  rank: 16
register: my-bot             # the same as {name: my-bot}
```
"""
_TOP = """
| key | type | default | meaning |
|---|---|---|---|
| `adaptation` | text | that of the entry point | How the base model is changed: {adaptations}, or one of another package. |
| `objective` | text | that of the entry point | What the model learns from: {objectives}, or one of another package. |
| `start_from` | text | none | The version whose adapter the training continues: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `runs:/RUN_ID`, or the folder of a logged model. Without it a new adapter is trained. |
| `options` | mapping | `{{}}` | Options of the adaptation and of the objective, listed below. |
"""
_BACKEND = """
The backend config says where a run is computed, never what is trained. Give it as JSON or as a `.json` file to
`mlflow run -c`, `mlflow-finetune run -c` or `ft.run(backend_config=...)`.
"""


def render() -> str:
    """Return the page."""
    names = {kind: ", ".join(code(name) for name in method_names(kind)) for kind in _KINDS}
    top = _TOP.format(adaptations=names["adaptation"], objectives=names["objective"])
    parts = ["## Methods", top]
    for name, section in SECTIONS.items():
        parts += _section(code(name), name, section, level=2)
    for kind in _KINDS:
        for name in method_names(kind):
            method = load_method(kind, name)
            parts += [f"## `options` of the {kind} `{name}`", sentence(headline(method)), _keys(method.Options)]
    parts += ["## Backend config", _BACKEND, _keys(BackendSettings)]
    return page("Configuration", _INTRODUCTION, *parts)


def _section(heading: str, path: str, model: type[BaseModel], level: int) -> Iterator[str]:
    """Yield the heading, the text and the table of a section, then those of the sections within it."""
    yield f"{'#' * level} {heading}"
    yield (inspect.getdoc(model) or "").replace("``", "`")
    yield _keys(model)
    inner: dict[type[BaseModel], list[str]] = {}
    for key, info in model.model_fields.items():
        for section in dict.fromkeys(_sections_in(info.annotation)):
            inner.setdefault(section, []).append(f"{path}.{key}")
    for section, paths in inner.items():
        yield from _section(" and ".join(code(path) for path in paths), paths[0], section, level=3)


def _keys(model: type[BaseModel]) -> str:
    return table(
        ("key", "type", "default", "meaning"),
        (
            (code(key), expected(model, key), _default(info), sentence(info.description or "", is_name_first=True))
            for key, info in model.model_fields.items()
        ),
    )


def _default(info: Any) -> str:
    """Return a default as YAML would write it, and words for one that is a section of its own."""
    if not info.is_required() and isinstance(info.get_default(call_default_factory=True), BaseModel):
        return "its own defaults"
    return "**required**" if info.is_required() else code(default_text(info))


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)
