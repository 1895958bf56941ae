"""The forms that a user's function may have, and what it gets."""

import pytest
from reward_files import completion, completions, loaded, values, write

from mlflow_finetune_plugin.errors import ConfigError, RewardError

pytestmark = pytest.mark.process


def only(scores):
    (part,) = scores.parts.values()
    return part


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def score(completion, reference): return completion == reference", [1.0, 0.0]),
        ("def score(completion, answer): return len(answer) + len(completion)", [2.0, 2.0]),
        ("def score(completion, **columns): return columns['answer'] == completion", [1.0, 0.0]),
        ("def score(messages, prompt, completion): return messages[-1]['content'] == prompt", [1.0, 1.0]),
        ("def score(completion, item): return item['answer'] == completion", [1.0, 0.0]),
        ("def score(completion, fields, missing=0.5): return missing + len(fields)", [2.5, 2.5]),
        ("async def score(completion): return int(completion)", [4.0, 5.0]),
        ("def score(completion): return None if completion == '5' else 1", [1.0, None]),
        ("import numpy\ndef score(completion): return numpy.float32(0.5)", [0.5, 0.5]),
        ("def f(completions, **kwargs): return [float(c) for c in completions]", [4.0, 5.0]),
        ("def f(prompts, completions, answer): return [a == c for a, c in zip(answer, completions)]", [1.0, 0.0]),
        ("async def f(completions): return [None if c == '4' else 2 for c in completions]", [None, 2.0]),
        ("import numpy\ndef f(completions, **_): return numpy.ones(len(completions))", [1.0, 1.0]),
        ("def grade(sample, item): return sample['output_json'] == int(item['answer'])", [1.0, 0.0]),
        (
            "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
            "    return {'score': solution_str == ground_truth, 'acc': 1}",
            [1.0, 0.0],
        ),
        (
            "class Score:\n    def __call__(self, completion): return 3\nscore = Score()\ndef _hidden(): pass",
            [3.0, 3.0],
        ),
    ],
)
def test_a_function_may_have_any_of_these_forms(tmp_path, source, expected):
    write(tmp_path, source)
    name = "reward.py:score" if "score = Score()" in source else "reward.py"
    with loaded(tmp_path, name) as rewards:
        assert only(rewards.score(completions("4", "5", answer="4", reference="4"))) == expected


def test_a_reason_stands_beside_the_number(tmp_path):
    source = "def score(completion): return (0.5, 'half') if completion == 'a' else 1"
    scores = values(tmp_path, source, completions("a", "b"))
    assert scores.reasons == {"score": ["half", None]}
    assert scores.parts == {"score": [0.5, 1.0]}


def test_verl_rows_bring_their_own_truth_and_source(tmp_path):
    source = """
    def compute_score(data_source, solution_str, ground_truth, extra_info):
        return (solution_str == ground_truth, f"{data_source} {extra_info['split']}")
    """
    row = completion("7", data_source="gsm8k", reward_model={"ground_truth": "7"}, extra_info={"split": "train"})
    scores = values(tmp_path, source, [row])
    assert scores.parts["score"] == [1.0]
    assert scores.reasons["score"] == ["gsm8k train"]


def test_functions_of_trl_for_conversations_get_messages(tmp_path):
    source = """
    def f(prompts, completions, **kwargs):
        assert prompts[0] == [{"role": "user", "content": "What is 2 + 2?"}]
        return [float(len(completion[0]["content"])) for completion in completions]
    """
    scores = values(tmp_path, source, completions("four", "4"), completions="messages")
    assert only(scores) == [4.0, 1.0]


def test_a_function_of_trl_itself(tmp_path):
    pytest.importorskip("trl")
    write(tmp_path, "from trl.rewards import think_format_reward")
    with loaded(tmp_path, {"python": "reward.py:think_format_reward", "completions": "messages"}) as rewards:
        scores = rewards.score(completions("<think>\n2 and 2\n</think>\n4", "4"))
    assert only(scores) == [1.0, 0.0]


def test_async_rows_run_at_the_same_time(tmp_path):
    source = """
    import asyncio, time
    started = time.monotonic()
    running = most = 0
    async def score(completion):
        global running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return most
    """
    assert max(only(values(tmp_path, source, completions(*"abcdefgh")))) == 8


def test_an_async_row_that_takes_too_long_is_that_row(tmp_path):
    source = """
    import asyncio
    async def score(completion):
        await asyncio.sleep(60 if completion == "slow" else 0)
        return 1
    """
    scores = values(tmp_path, source, completions("a", "slow", "b"), timeout_s=0.5, on_error="skip")
    assert only(scores) == [1.0, None, 1.0]
    assert scores.reasons["score"][1] == "skipped: no result within 0.5 s (timeout_s)"


def test_modules_beside_the_file_can_be_imported(tmp_path):
    write(tmp_path, "BONUS = 2", "bonus_of_mine.py")
    assert only(
        values(tmp_path, "import bonus_of_mine\ndef score(completion): return bonus_of_mine.BONUS", completions("a"))
    ) == [2.0]


@pytest.mark.parametrize(
    ("source", "part", "message"),
    [
        ("def score(text): return 1", "reward.py", "takes (text), and no completion; fix: take completion"),
        ("def score(completion, prompts): return 1", "reward.py", "names of one row and of a batch"),
        ("def score(completion, /): return 1", "reward.py", "by position only; fix: remove the '/'"),
        ("def f(completions, completion_ids): return []", "reward.py", "belong to the trainer's process"),
        ("score = 3", "reward.py:score", "is of type int, not a function"),
        ("def a(completion): ...\ndef b(completion): ...", "reward.py", "has 2 functions (a, b); fix: name one"),
        ("import nothing_like_this\ndef score(completion): return 1", "reward.py", "ModuleNotFoundError: No module named 'nothing_like_this'; at reward.py:1"),
        ("def score(completion): return 1\nimport os; os._exit(3)", "reward.py", "its process ended by itself with exit code 3 while it was loaded"),
        ("def score(completion, answr): return 1", "reward.py", "takes answr, and the rows have no such column; their columns: answer"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_scored(tmp_path, source, part, message):
    write(tmp_path, source)
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, part, columns=["answer"])
    (problem,) = caught.value.problems
    assert message in problem
    assert problem.startswith(f"rewards[0] ({part}): ")


def test_a_missing_column_names_the_row_and_its_columns(tmp_path):
    write(tmp_path, "def score(completion, answr): return 1")
    with (
        loaded(tmp_path, "reward.py") as rewards,
        pytest.raises(RewardError, match=r"at row 0 .*no column answr; its columns: answer"),
    ):
        rewards.score(completions("a", answer="1"))
