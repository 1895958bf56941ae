"""Rows that a person gives, as a model's own tokenizer and template render them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.data_files import column_settings, data_files
from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, readable_form
from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
from mlflow_finetune_plugin.data.request import DataFile, DataRequest
from mlflow_finetune_plugin.data.sources.locations import is_remote
from mlflow_finetune_plugin.data.sources.rows import peek
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.methods import RowForm, load_method

SEED = 0
"""Of the row sample: the same rows are taken every time."""


def prepare_evaluation_rows(
    config: EvaluationConfig, card: dict[str, Any], renderer: ChatRenderer, folder: Path
) -> PreparedData:
    """``card``: the logged model's, whose longest row holds here, too. Raises DataError."""
    held_out = config.data.eval
    assert isinstance(held_out, list)
    files = data_files(held_out)
    learnt: RowForm = load_method("objective", str(card.get("objective", "sft"))).ROWS
    request = DataRequest(
        train=(),
        eval=files,
        layout=config.data.layout,
        columns=config.data.columns,
        overlength=config.data.overlength,
        max_length=int(card["max_length"]),
        max_eval_rows=config.eval.max_rows,
        seed=SEED,
        ignore=tuple(config.data.ignore),
        prompt_template=config.data.prompt_template,
        max_skipped=config.data.max_skipped,
        group=config.data.group,
        form=_form(files, column_settings(config.data), _forms(learnt, is_scored=bool(config.rewards))),
    )
    return prepare(request, renderer, folder)


def _forms(learnt: RowForm, *, is_scored: bool) -> tuple[RowForm, ...]:
    """Return the forms in which rows may be read, the best first: what the model learned from, or answers, as any model can be
    proven on. Rewards need prompts, because only their other columns reach the reward.
    """
    return ("prompts",) if is_scored else (learnt, "answers")


def _form(files: tuple[DataFile, ...], settings: ColumnSettings, forms: tuple[RowForm, ...]) -> RowForm:
    """Return the form in which all files can be read; the first one where they differ or are not on this disk yet."""
    local = [file for file in files if not is_remote(str(file.path))]
    readable = {
        readable_form([row for _, row in peek(Path(file.path))], file.settings(settings), forms) for file in local
    }
    return readable.pop() if len(readable) == 1 else forms[0]
