"""Rows that a person gives, as a model's own tokenizer and template render them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.config.data_files import data_files
from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
from mlflow_finetune_plugin.data.request import DataRequest
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

SEED = 0
"""Of the row sample: the same rows are taken every time."""


def prepare_evaluation_rows(
    config: EvaluationConfig, card: dict[str, Any], renderer: ChatRenderer, folder: Path
) -> PreparedData:
    """``card``: the logged model's, whose longest row holds here, too. Raises DataError."""
    held_out = config.data.eval
    assert isinstance(held_out, list)
    request = DataRequest(
        train=(),
        eval=data_files(held_out),
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
    )
    return prepare(request, renderer, folder)
