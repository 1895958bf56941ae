"""A registered reward model: a pyfunc model that returns one number for each row. It runs in the scoring process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow_finetune_plugin.rewards.completion import Completion, PartScore
from mlflow_finetune_plugin.rewards.process.child import Emit
from mlflow_finetune_plugin.rewards.process.result import NotANumberError, number_of
from mlflow_finetune_plugin.rewards.process.target import Description, ScoringTarget


def load_model(target: ScoringTarget) -> RewardModel:
    """Load the pyfunc model in the target's folder."""
    import mlflow.pyfunc

    return RewardModel(mlflow.pyfunc.load_model(target.path), target)


class RewardModel:
    """A pyfunc model, called once for all completions of a request."""

    def __init__(self, model: Any, target: ScoringTarget) -> None:
        self.file = target.path
        self._model = model
        self.description = Description("batch", target.name)

    def score(self, completions: Sequence[Completion], emit: Emit) -> None:
        """Score the completions; see ``LoadedTarget``."""
        import pandas

        rows = [[*each.prompt, {"role": "assistant", "content": each.text}] for each in completions]
        results = _numbers(self._model.predict(pandas.DataFrame({"messages": rows})))
        if len(results) != len(completions):
            raise NotANumberError(
                f"the model returned {len(results)} values for {len(completions)} rows; fix: one number for each row"
            )
        for position, result in enumerate(results):
            try:
                score = PartScore(number_of(result))
            except NotANumberError as error:
                score = PartScore(fault=str(error))
            emit(position, score)


def _numbers(results: Any) -> list[Any]:
    """Return the values of a list, an array, a Series, or a table or array of one column."""
    values = getattr(results, "values", results)
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)):
        raise NotANumberError(f"the model returned {type(results).__name__}; fix: return one number for each row")
    return [value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value for value in values]
