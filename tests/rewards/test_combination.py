"""Several parts together: names, weights, totals, and what is reported before anything is scored."""

import gzip
import json
import time

import pytest
from reward_files import completion, completions, loaded, write

from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, RewardError
from mlflow_finetune_plugin.rewards import RewardSettings, is_harmless, reward_faults

CHECK = {"type": "string_check", "name": "exact", "input": "{{sample.output_text}}", "reference": "{{item.reference}}", "operation": "eq"}  # fmt: skip


@pytest.mark.process
def test_parts_are_kept_apart_and_summed_by_weight(tmp_path):
    write(
        tmp_path,
        "def length(completion): return -len(completion)\ndef maybe(completion): return None if completion == 'b' else 1",
    )
    parts = [
        {"grader": CHECK, "weight": 2},
        {"python": "reward.py:length", "weight": 0.1},
        {"python": "reward.py:maybe"},
    ]
    with loaded(tmp_path, *parts) as rewards:
        scores = rewards.score(completions("a", "b", reference="a"))
    assert rewards.names == ("exact", "length", "maybe")
    assert rewards.weights == (2.0, 0.1, 1.0)
    assert scores.parts == {"exact": [1.0, 0.0], "length": [-1.0, -1.0], "maybe": [1.0, None]}
    assert scores.total == pytest.approx([2.9, -0.1])
    assert scores.skipped == 0


@pytest.mark.process
def test_a_total_without_any_value_is_none(tmp_path):
    write(tmp_path, "def score(completion): return None")
    with loaded(tmp_path, "reward.py") as rewards:
        assert rewards.score(completions("a")).total == [None]
        assert rewards.score([]).total == []
    with pytest.raises(RuntimeError, match="fix: score inside of"):
        rewards.score([])


def test_names_are_made_unique(tmp_path):
    rewards = loaded(tmp_path, {"grader": CHECK}, {"grader": CHECK}, {"grader": CHECK, "name": "exact_2"})
    assert rewards.names == ("exact", "exact_3", "exact_2")


@pytest.mark.bad_input
def test_all_problems_are_reported_together(tmp_path):
    write(tmp_path, "def score(", "broken.py")
    write(tmp_path, "def score(completion): return 1")
    (tmp_path / "notes.txt").write_text("x")
    parts = [
        "missing.py:score",
        "broken.py",
        "reward.py:scroe",
        "notes.txt",
        {"scorer": "RegexMatch"},
        {"scorer": "reward.py"},
        {"python": "reward.py", "name": "x", "env": ["NOT_SET_HERE"]},
        {"python": "reward.py", "name": "x"},
    ]
    faults = reward_faults([RewardSettings.model_validate(part) for part in parts], tmp_path)
    assert [fault.split(": ", 1)[1].replace(str(tmp_path), "") for fault in faults] == [
        "2 parts have the name 'x'; fix: rename them",
        "the file /missing.py does not exist; fix: give its path relative to the recipe",
        "/broken.py is not valid Python: '(' was never closed (broken.py, line 1); fix: correct it",
        "/reward.py: no function 'scroe'; did you mean score? fix: pick one of: score",
        "/notes.txt is not a Python file; fix: name a .py file",
        "'RegexMatch' is not a scorer; fix: use mlflow.genai.scorers.NAME or FILE.py:NAME",
        "'reward.py' names no scorer; fix: use FILE:NAME",
        "NOT_SET_HERE is not set; fix: set it, or remove it from env",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, *parts)
    assert caught.value.problems == faults
    assert reward_faults([], tmp_path) == ["rewards is empty; fix: name at least one part, for example reward.py:score"]


@pytest.mark.process
def test_parts_are_scored_at_the_same_time(tmp_path):
    write(tmp_path, "import time\ndef f(completions):\n    time.sleep(1)\n    return [1] * len(completions)")
    with loaded(tmp_path, "reward.py", "reward.py", "reward.py") as rewards:
        started = time.monotonic()
        assert rewards.score(completions("a")).total == [3.0]
        assert time.monotonic() - started < 2.5
    assert rewards.names == ("reward", "reward_2", "reward_3")


@pytest.mark.process
def test_a_part_that_no_longer_starts_is_one_error(tmp_path):
    path = write(tmp_path, "def score(completion): return 1")
    rewards = loaded(tmp_path, "reward.py:score")
    path.write_text("import nothing_like_this")
    with pytest.raises(RewardError, match=r"reward 'score' \(reward.py:score\) cannot be started: ModuleNotFoundError"):
        rewards.__enter__()
    assert issubclass(RewardError, FinetuneError)


GSM8K = '''
import re

ANSWER = re.compile(r"####\\s*(-?[\\d,.]+)")

def number(text):
    found = ANSWER.findall(text)
    return float(found[-1].replace(",", "").rstrip(".")) if found else None

def correct(completion, answer):
    """1 for the right number after ####."""
    value = number(completion)
    return (1.0, f"{value:g}") if value is not None and value == number(answer) else (0.0, "no answer" if value is None else f"{value:g}")

def form(completion):
    return len(ANSWER.findall(completion)) == 1

def steps(completions, answer):
    """The share of the reference's calculations, in TRL's form for a batch."""
    def calculations(text): return set(re.findall(r"<<(.*?)>>", text))
    return [len(calculations(c) & calculations(a)) / max(1, len(calculations(a))) for c, a in zip(completions, answer)]
'''


@pytest.mark.process
def test_a_reward_for_gsm8k_on_its_own_rows(tmp_path, shared_data):
    """Every reference answer earns everything; one with another number, or another question's, does not."""
    path = shared_data / "datasets" / "gsm8k" / "test.jsonl.gz"
    if not path.is_file():
        pytest.skip("the shared data folder has no gsm8k")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 1319
    write(tmp_path, GSM8K)
    parts = [
        "reward.py:correct",
        {"python": "reward.py:form", "weight": 0.1},
        {"python": "reward.py:steps", "weight": 0.5},
    ]
    with loaded(tmp_path, *parts, columns=["question", "answer"]) as rewards:
        right = rewards.score([_answered(row, row["answer"], at) for at, row in enumerate(rows)])
        wrong = rewards.score([_answered(row, row["answer"] + "1", at) for at, row in enumerate(rows)])
        empty = rewards.score([_answered(row, "I do not know.", at) for at, row in enumerate(rows)])
    assert right.parts["correct"] == [1.0] * 1319
    assert right.parts["form"] == [1.0] * 1319
    with_steps = sum("<<" in row["answer"] for row in rows)
    assert sum(right.parts["steps"]) == with_steps > 1300
    assert wrong.parts["correct"] == [0.0] * 1319
    assert wrong.parts["form"] == [1.0] * 1319
    assert empty.total == [0.0] * 1319
    assert empty.reasons["correct"][0] == "no answer"


def _answered(row, text, at):
    return completion(text, row=at, asks=row["question"], question=row["question"], answer=row["answer"])


@pytest.mark.bad_input
def test_different_files_of_one_name_are_refused_because_their_records_would_replace_each_other(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "reward.py").write_text("def score(completion):\n    return 1\n")
    both = [RewardSettings.model_validate({"python": f"{folder}/reward.py:score", "name": folder}) for folder in "ab"]
    assert reward_faults(both, tmp_path) == [
        "rewards: different files have the name reward.py; fix: rename one of them"
    ]
    assert reward_faults([both[0], both[0].model_copy(update={"name": "c"})], tmp_path) == []


CODE = {"type": "python", "name": "c", "source": "def grade(sample, item):\n    return 1.0"}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"grader": CHECK}, True),
        ({"grader": {"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a"}}, True),
        ({"grader": CODE}, False),
        (
            {"grader": {"type": "multi", "name": "m", "graders": {"a": CHECK, "c": CODE}, "calculate_output": "c"}},
            False,
        ),
        ({"python": "reward.py:score"}, False),
        ({"scorer": "mlflow.genai.scorers.RegexMatch"}, False),
        ({"model": "models:/grader/1"}, False),
        ({"judge": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "prompt": "{{completion}}"}}, False),
    ],
)
def test_only_parts_that_compare_texts_are_harmless(part, expected):
    assert is_harmless(RewardSettings.model_validate(part)) is expected
