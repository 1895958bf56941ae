"""The examples of the guide work as they are written."""

import re

import pytest
import yaml
from conftest import REPOSITORY
from reward_files import completion, completions, loaded

from mlflow_finetune_plugin.errors import RewardError
from mlflow_finetune_plugin.rewards import RewardSettings

GUIDE = (REPOSITORY / "docs" / "guides" / "rewards.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.process
def test_the_functions_and_the_first_recipe_of_the_guide(tmp_path):
    (source,) = blocks("python")
    (tmp_path / "reward.py").write_text(source)
    recipe = yaml.safe_load(blocks("yaml")[0])
    with loaded(tmp_path, *recipe["rewards"], columns=["answer"]) as rewards:
        scores = rewards.score(completions("So it is #### 1,072", "1072", answer="... #### 1072"))
    assert rewards.names == ("correct", "short", "form")
    assert scores.parts == {"correct": [1.0, 0.0], "short": [-0.019, -0.004], "form": [1.0, 0.0]}
    assert scores.total == pytest.approx([1.1981, -0.0004])
    assert scores.reasons["correct"] == ["answered 1072", "no answer after ####"]


def test_all_recipes_of_the_guide_are_valid():
    parts = [part for block in blocks("yaml") for part in yaml.safe_load(block)["rewards"]]
    assert [RewardSettings.model_validate(part).kind for part in parts] == [
        "python",
        "python",
        "scorer",
        "grader",
        "judge",
    ]


@pytest.mark.process
def test_the_error_of_the_guide_is_the_real_one(tmp_path):
    (source,) = blocks("python")
    (tmp_path / "reward.py").write_text(source)
    row = completion("#### .", row=13, asks="Natalia sold clips to 48 of her friends in April", answer="#### 72")
    path = f"{tmp_path}/reward.py:correct"  # a recipe's paths are absolute once it is read
    with loaded(tmp_path, path) as rewards, pytest.raises(RewardError) as caught:
        rewards.score([row])
    (example,) = blocks("text")
    assert str(caught.value).replace(str(tmp_path), "/home/me/my-bot") == example.strip()
