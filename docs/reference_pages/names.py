"""The page on every name that is written to MLflow."""

from __future__ import annotations

from mlflow_finetune_plugin.store.names import NAMES
from reference_pages.markdown import code, page, table

_TITLES = {
    "alias": "Aliases of a registered model",
    "model id": "Reserved model names",
    "tag": "Tags",
    "param": "Params",
    "metric": "Metrics",
    "artifact": "Artifacts",
    "feedback": "Feedback on traces",
    "attribute": "Attributes of spans",
}
_INTRODUCTION = """
Everything that mlflow-finetune knows about a run, a version or a vote is in MLflow under these names. They are a public
interface: a change is listed in the changelog. A part in angle brackets is filled in when the name is written.

A run also has every key of the resolved configuration as a param, for example `training.learning_rate`. Metrics of a proof are
written once for all rows, and with several tasks again for each as `NAME/TASK`.
"""


def render() -> str:
    """Return the page."""
    parts = []
    for kind, title in _TITLES.items():
        rows = [(code(name.text), ", ".join(name.owners), name.description) for name in NAMES if name.kind == kind]
        parts += [f"## {title}", table(("name", "on", "meaning"), rows)]
    missing = {name.kind for name in NAMES} - set(_TITLES)
    assert not missing, f"kinds of names without a title: {missing}; fix: add them to _TITLES"
    return page("Names in MLflow", _INTRODUCTION, *parts)
