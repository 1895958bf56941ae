"""A reward model of the registry: resolved before anything is spent, loaded in a process apart."""

import pytest
from reward_files import completions, loaded

from mlflow_finetune_plugin.errors import ConfigError, RewardError

pytestmark = [pytest.mark.process, pytest.mark.store]

MODEL = """
import os
import mlflow
import numpy
import pandas

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        assert os.environ.get("MLFLOW_TRACKING_TOKEN") is None
        answers = [messages[-1] for messages in model_input["messages"]]
        assert all(answer["role"] == "assistant" for answer in answers)
        values = [{factor} * len(answer["content"]) for answer in answers]
        return {{
            "array": numpy.array(values),
            "column": numpy.array(values)[:, None],
            "table": pandas.DataFrame({{"score": values}}),
            "series": pandas.Series(values),
            "one": values[:1],
            "two": [[value, value] for value in values],
            "nan": [float("nan")] * len(values),
            "text": "high",
        }}.get(answers[0]["content"], values)

mlflow.models.set_model(Model())
"""


def register(desk, factor=1.0):
    import mlflow

    (desk.path / "model.py").write_text(MODEL.format(factor=factor))
    mlflow.set_tracking_uri(desk.tracking_uri)
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(desk.path / "model.py"),
            pip_requirements=["mlflow"],
            registered_model_name="my-rewards",
        )
    return str(info.registered_model_version)


def test_a_model_gives_one_finite_number_for_each_row(desk, monkeypatch):
    """The alias is resolved when the recipe is loaded, and moves without an effect afterwards."""
    client = desk.client()
    client.set_registered_model_alias("my-rewards", "champion", register(desk))
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    rewards = loaded(desk.path, {"model": "models:/my-rewards@champion"})
    client.set_registered_model_alias("my-rewards", "champion", register(desk, factor=2.0))
    with rewards:
        assert rewards.names == ("my-rewards_champion",)
        for form in ("list", "array", "column", "table", "series"):
            assert rewards.score(completions(form, "a")).total == [len(form), 1.0]
        for form, message in (
            ("one", "the model returned 1 values for 2 rows"),
            ("two", "returned .*of type list"),
            ("nan", "returned nan"),
            ("text", "the model returned str; fix: return one number for each row"),
        ):
            with pytest.raises(RewardError, match=message):
                rewards.score(completions(form, "a"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("models:/my-rewards@champion", "the registry has no my-rewards@champion"),
        ("models:/my-rewards/3", "the registry has no my-rewards/3"),
        ("models:/my-rewards", "models:/NAME@ALIAS"),
        ("my-rewards", "names no version; fix: use models:/NAME@ALIAS"),
    ],
)
def test_a_model_that_is_not_registered_is_refused_before_anything_is_scored(desk, uri, message):
    with pytest.raises(ConfigError) as caught:
        loaded(desk.path, {"model": uri})
    assert message in caught.value.problems[0]
