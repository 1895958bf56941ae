"""What a registered version answers: the model loaded as anybody would, on rows that another version was asked."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.held_out_rows import prompt_of
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.proof import measure
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.images.prompts import PicturePrompt
from mlflow_finetune_plugin.logged_models.evaluation_rows import prepare_evaluation_rows
from mlflow_finetune_plugin.logged_models.loading import LoggedModel, load_logged

OnProgress = Callable[[int, int], None]


class Answerer:
    """``base_model``: where the base is now, when it has moved. ``trust_code``: as of ``load_logged``."""

    def __init__(self, uri: str, base_model: str | None = None, *, trust_code: bool = False) -> None:
        self._uri, self._base_model, self._trust_code = uri, base_model, trust_code

    def answer(self, rows: Sequence[EvalRow], max_new_tokens: int, on_progress: OnProgress | None = None) -> AnswerSet:
        """Greedy answers, and the nats of the reference answers. Raises ReloadError."""
        loaded = self._loaded
        return measure(
            loaded.model.eval(),
            loaded.tokenizer,
            [self._rendered(row) for row in rows],
            max_new_tokens=max_new_tokens,
            stop_token_ids=loaded.card["stop_token_ids"],
            answer_prefix=loaded.card["answer_prefix"],
            on_progress=on_progress,
        )

    def rows(self, config: EvaluationConfig, folder: Path) -> list[EvalRow]:
        """Return the rows of the request, rendered with this version's template and tokens. Raises DataError, ReloadError."""
        return prepare_evaluation_rows(config, self._loaded.card, self._renderer, folder).eval_rows

    @cached_property
    def _loaded(self) -> LoggedModel:
        from transformers.utils import logging

        logging.disable_progress_bar()
        with warnings.catch_warnings(record=True) as caught:  # filters that MLflow sets itself would undo an "ignore"
            loaded = load_logged(self._uri, self._base_model, trust_code=self._trust_code)
        for warning in caught:
            if not issubclass(warning.category, UserWarning):  # those are MLflow's, on how the model was written
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return loaded

    @cached_property
    def _renderer(self) -> ChatRenderer:
        return ChatRenderer(self._loaded.tokenizer, None, pictures=self._loaded.pictures)

    def _rendered(self, row: EvalRow) -> EvalRow:
        """The row with this version's own template and tokens; text without turns keeps its tokens, the base being the same."""
        if not row.messages:
            return row
        if isinstance(row.prompt_ids, PicturePrompt):
            self._renderer.picture_store = row.prompt_ids.store
        if row.fields:  # a prompt, which may have no reference
            return self._rendered_prompt(row)
        example = self._renderer.encode(row.turns)[-1]  # unrolled where the template drops earlier thoughts
        start, end = example.last_turn()
        ids = example.input_ids
        rejected: tuple[int, ...] = ()
        if row.rejected is not None:
            worse = self._renderer.encode([*row.messages, {"role": "assistant", "content": row.rejected}])[-1]
            rejected = tuple(worse.input_ids[slice(*worse.last_turn())])
        prompt, completion = prompt_of(ids[:start], example.pictures, self._renderer), tuple(ids[start:end])
        return replace(row, prompt_ids=prompt, completion_ids=completion, rejected_ids=rejected)

    def _rendered_prompt(self, row: EvalRow) -> EvalRow:
        (encoded,) = self._renderer.encode_prompts([row.messages])
        if isinstance(encoded, RowFault):
            raise DataError(
                f"{row.source} line {row.line}: {encoded.detail or encoded.reason}; fix: hold out other rows"
            )
        ids = self._loaded.tokenizer(row.reference, add_special_tokens=False, verbose=False).input_ids
        end = self._renderer.end_of_turn_token_id
        return replace(row, prompt_ids=tuple(encoded[0].input_ids), completion_ids=(*ids, end))
