"""The recipe for GSM8K's files on a GPU: its rewards and its data preparation, on rows in that format."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import REPOSITORY
from reward_files import completions, loaded

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin.errors import RewardError
from mlflow_finetune_plugin.planning.preflight import load_checked_config

RECIPE = REPOSITORY / "recipes" / "verifiable_rewards" / "gsm8k"
ANSWER = "She sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=1072>>1,072 clips in total.\n#### 1,072"


@pytest.mark.process
def test_rewards_read_the_number_after_the_last_mark():
    texts = ["So it is\n#### 1,072", "#### 1072\n", "#### $1072.0", "#### 72", "1072", "#### 1072 clips", "####", ""]
    with loaded(RECIPE, "reward.py:correct", "reward.py:form", columns=["answer"]) as rewards:
        scores = rewards.score(completions(*texts, answer=ANSWER))
    assert scores.parts["correct"] == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert scores.parts["form"] == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.process
def test_a_row_without_a_number_is_named():
    with (
        loaded(RECIPE, "reward.py:correct", columns=["answer"]) as rewards,
        pytest.raises(RewardError, match="this row's answer does not end with '#### number': 'no number'"),
    ):
        rewards.score(completions("#### 1", answer="no number"))


def test_the_recipe_reads_gsm8ks_rows(tmp_path):
    folder = tmp_path / "gsm8k"
    shutil.copytree(RECIPE, folder)
    for name in ("train", "test"):
        rows = [{"question": f"How many clips are {i} and 24?", "answer": f"{i}+24\n#### {i + 24}"} for i in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_checked_config(folder, "grpo", {"base_model": "embedded"}, caller=tmp_path)
    options = config.objective_options()
    assert ([part.weight for part in options.rewards], options.sampler) == ([1.0, 0.2], "colocated_vllm")
    checked = ft.check_data(folder, "grpo", {"base_model": "embedded"})
    assert checked.is_usable, checked.problem
    assert (checked.report.train_rows, checked.report.eval_rows) == (4, 4)
