"""The entries of a recipe's rewards."""

import subprocess
import sys

import pytest
from pydantic import ValidationError
from reward_files import settings

from mlflow_finetune_plugin.rewards import RewardSettings


def test_a_text_names_a_python_function():
    assert RewardSettings.model_validate("reward.py:score") == settings(python="reward.py:score")


def test_keys_beside_a_scorer_are_its_arguments():
    part = settings(scorer="mlflow.genai.scorers.RegexMatch", pattern="x", weight=2, args={"name": "digits"})
    assert (part.args, part.weight, part.name) == ({"pattern": "x", "name": "digits"}, 2.0, None)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "needs exactly one of python, grader, scorer, model, judge, and has none of them"),
        ({"python": "a.py", "model": "models:/x/1"}, "both python and model"),
        ({"python": "a.py", "wieght": 2}, "Extra inputs are not permitted"),
        ({"python": "a.py", "args": {"x": 1}}, "args belongs to scorer, not to python"),
        ({"python": "a.py", "endpoint": {"base_url": "http://h"}}, "endpoint belongs to grader"),
        ({"model": "models:/x/1", "completions": "messages"}, "completions belongs to python"),
        ({"python": "a.py", "weight": float("nan")}, "finite number"),
        ({"python": "a.py", "timeout_s": 0}, "greater than 0"),
        ({"python": "a.py", "on_error": "ignore"}, "'fail' or 'skip'"),
        ({"python": "a.py", "name": "a/b"}, "fix: use letters, digits"),
        ({"python": "a.py", "env": ["A=B"]}, "should match pattern"),
        ({"grader": {"type": "string_check"}}, "grader.name: Field required"),
        ({"judge": {"base_url": "ftp://h", "model": "m", "prompt": "x"}}, "should match pattern"),
        ({"judge": {"base_url": "http://h", "model": "m", "prompt": "{{x}}"}}, "begin it with one of: item, sample, prompt, completion, reference"),
        ({"judge": {"base_url": "http://h", "model": "m", "prompt": "x", "range": [5, 5]}}, "give the lowest and then the highest"),
        ({"judge": {"base_url": "http://h", "model": "m", "prompt": "x", "api_key": "s3cret"}}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused(values, message):
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        settings(**values)


@pytest.mark.process
def test_the_room_is_light_to_import():
    code = (
        "import sys, mlflow_finetune_plugin.rewards as rewards; rewards.load_rewards, rewards.RewardSettings; "
        "heavy = {'torch', 'transformers', 'mlflow', 'datasets', 'evaluate', 'sacrebleu', 'nltk', 'httpx', 'pandas', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
