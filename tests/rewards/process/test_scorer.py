"""MLflow's scorers as rewards: those that MLflow has, and those of a file."""

import re

import pytest
from reward_files import completions, loaded, write

from mlflow_finetune_plugin.errors import ConfigError, RewardError
from mlflow_finetune_plugin.rewards.process.child import LoadFaultError
from mlflow_finetune_plugin.rewards.process.scorer import load_scorer
from mlflow_finetune_plugin.rewards.process.target import ScoringTarget

SCORERS = """
from mlflow.entities import Feedback
from mlflow.genai.scorers import Scorer, scorer

@scorer
def exact(outputs, expectations):
    return outputs.strip() == expectations["expected_response"]

@scorer
def graded(inputs, outputs):
    assert inputs["messages"][0]["role"] == "user"
    return Feedback(value=0.1 / (1 / len(outputs)), rationale="by length")

@scorer
def several(outputs, expectations):
    return [Feedback(name="a", value=True, rationale="is a"), Feedback(name="b", value="no"), Feedback(name="c", value=2)]

class Polite(Scorer):
    name: str = "polite"
    word: str = "please"
    def __call__(self, *, outputs):
        return "yes" if self.word in outputs else "no"

@scorer
def word(outputs): return "excellent"

@scorer
def broken(outputs): return Feedback(error=ValueError("no judge"))

@scorer
def raising(outputs): return 1 / 0

@scorer
def traced(outputs, trace): return True

def plain(outputs): return 1
"""


def load(folder, name, **arguments):
    path = str(write(folder, SCORERS, "scorers.py")) if "." not in name else ""
    return load_scorer(ScoringTarget("scorer", path, name, arguments=arguments))


@pytest.mark.process
def test_scorers_of_a_file_and_of_mlflow_give_numbers(tmp_path):
    write(tmp_path, SCORERS, "scorers.py")
    parts = [
        {"scorer": "scorers.py:graded"},
        {"scorer": "mlflow.genai.scorers.RegexMatch", "pattern": r"^\d+$", "name": "digits"},
    ]
    with loaded(tmp_path, *parts) as rewards:
        scores = rewards.score(completions("7 ", "7", "seven", reference="7"))
        assert scores.parts == {"graded": [0.2, 0.1, 0.5], "digits": [0.0, 1.0, 0.0]}
        assert scores.reasons["graded"] == ["by length"] * 3
        with pytest.raises(
            RewardError, match=r"ZeroDivisionError: division by zero; at scorers.py:12 in graded: return"
        ) as caught:
            rewards.score(completions("a", ""))
    assert caught.value.row == 1


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("exact", {}, [1.0, 1.0, 0.0]),
        ("several", {}, [1.0, 1.0, 1.0]),
        ("Polite", {"word": "7"}, [1.0, 1.0, 0.0]),
        ("mlflow.genai.scorers.ResponseLength", {"max_length": 3}, [1.0, 1.0, 0.0]),
        ("mlflow.genai.scorers.RegexMatch", {"pattern": r"^\d+$"}, [0.0, 1.0, 0.0]),
    ],
)
def test_every_form_of_a_result_is_a_number(tmp_path, name, arguments, expected):
    scores = {}
    load(tmp_path, name, **arguments).score(completions("7 ", "7", "seven", reference="7"), scores.__setitem__)
    assert [scores[position].value for position in range(3)] == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("word", "returned 'excellent'; fix: return a number, a bool, 'yes' or 'no'"),
        ("broken", "returned a Feedback with the error"),
        (
            "raising",
            "ZeroDivisionError: division by zero; at scorers.py:31 in raising: def raising(outputs): return 1 / 0",
        ),
    ],
)
def test_what_is_not_a_number_is_a_fault(tmp_path, name, message):
    scores = {}
    load(tmp_path, name).score(completions("a"), scores.__setitem__)
    assert message in scores[0].fault


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("traced", {}, "traced needs trace, and a reward has inputs, outputs, expectations"),
        ("plain", {}, "not an MLflow scorer; fix: decorate it with @scorer, or use python:"),
        ("exact", {"pattern": "x"}, "is a scorer already and takes no arguments; fix: remove pattern"),
        ("mlflow.genai.scorers.RegexMach", {}, "mlflow.genai.scorers has no 'RegexMach'"),
        ("mlflow.genai.scorers.ConversationCompleteness", {}, "scores sessions, and a reward has single answers"),
    ],
)
def test_scorers_that_cannot_score_one_answer_are_refused(tmp_path, name, arguments, message):
    with pytest.raises(LoadFaultError, match=re.escape(message)):
        load(tmp_path, name, **arguments)


@pytest.mark.process
def test_a_scorer_without_its_arguments_is_refused_before_anything_is_scored(tmp_path):
    with pytest.raises(ConfigError, match=r"rewards\[0\] \(mlflow.genai.scorers.RegexMatch\): .*pattern"):
        loaded(tmp_path, {"scorer": "mlflow.genai.scorers.RegexMatch"})
