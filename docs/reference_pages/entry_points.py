"""The page on entry points and on the names that ``-P`` accepts."""

from __future__ import annotations

from mlflow_finetune_plugin.config.entry_points import DEFAULT_ENTRY_POINT, ENTRY_POINTS, OPERATIONS
from mlflow_finetune_plugin.config.overrides import SHORTHANDS
from mlflow_finetune_plugin.config.problems import ALIASES
from reference_pages.markdown import code, page, sentence, table

_INTRODUCTION = f"""
`mlflow run PROJECT -b finetune -e NAME` runs the entry point `NAME`, and so do `mlflow-finetune run PROJECT -e NAME` and
`ft.run(PROJECT, "NAME")`. Without a name, the project's `main` entry point runs, or `{DEFAULT_ENTRY_POINT}` where its
MLproject has none.
"""
_TRAINING = "Each entry point that trains names an adaptation and an objective. `-P adaptation=` and `-P objective=` replace them."
_OPERATIONS = """
An operation works on a registered model and trains nothing. `evaluate` also takes the keys of `data` and `eval`, for example
`-P eval_data=rows.jsonl`; `promote` and `watch` read the section `register` of the recipe.
"""
_OVERRIDES = """
`-P KEY=VALUE` overrides a key of [finetune.yaml](configuration.md) for one run and can be repeated. The value is read as YAML.
The key is the last part of its name where only one section has it (`-P rank=16`), else the dotted name
(`-P training.learning_rate=2e-4`). Relative paths start at the current directory.

These short names set the key that is usually meant:
"""
_ALIASES = "These aliases are names of other tools, or shorter ones:"
_FURTHER = "These keys belong to no section:"
_FURTHER_KEYS = (
    ("adaptation", "How the base model is changed, instead of the entry point's adaptation."),
    ("objective", "What the model learns from, instead of the entry point's objective."),
    (
        "start_from",
        "The version whose adapter the training continues, such as `models:/my-bot@champion`, `runs:/RUN_ID` or a folder.",
    ),
    ("resume", "The id of a run that ended early: continue it from its last checkpoint, in the same MLflow run."),
)


def render() -> str:
    """Return the page."""
    parts = [
        "## Training",
        _TRAINING,
        table(
            ("entry point", "adaptation", "objective", "what it does"),
            (
                (code(point.name), code(point.adaptation), code(point.objective), sentence(point.summary))
                for point in ENTRY_POINTS.values()
            ),
        ),
        "## Operations",
        _OPERATIONS,
    ]
    for operation in OPERATIONS.values():
        parts += [
            f"### `{operation.name}`",
            sentence(operation.summary),
            table(("`-P` key", "meaning"), ((code(k), sentence(text)) for k, text in operation.parameters.items())),
        ]
    parts += [
        "## Overrides: `-P`",
        _OVERRIDES,
        table(
            ("`-P` key", "sets"), ((code(name), code(".".join(map(str, path)))) for name, path in SHORTHANDS.items())
        ),
        _ALIASES,
        table(("`-P` key", "sets"), ((code(name), code(key)) for name, key in sorted(ALIASES.items()))),
        _FURTHER,
        table(("`-P` key", "meaning"), ((code(name), text) for name, text in _FURTHER_KEYS)),
    ]
    return page("Entry points and overrides", _INTRODUCTION, *parts)
