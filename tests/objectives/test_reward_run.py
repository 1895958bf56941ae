"""``-e reward`` as a user runs it: pairs with a wrong label, on the packaged base."""

import json
import random

import pytest
from conftest import REPOSITORY

QUICKSTART = REPOSITORY / "recipes" / "quickstart" / "data"


def write_pairs(folder):
    """Write the rows of the quickstart as pairs: its label, and another one."""
    rng = random.Random(0)
    for name in ("train", "test"):
        rows = [json.loads(line) for line in (QUICKSTART / f"{name}.jsonl").read_text().splitlines()]
        labels = sorted({row["completion"] for row in rows})
        pairs = [
            {
                "prompt": row["prompt"],
                "chosen": row["completion"],
                "rejected": rng.choice([label for label in labels if label != row["completion"]]),
            }
            for row in rows
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


@pytest.mark.process
def test_a_reward_model_from_the_command_to_its_scores(workplace):
    write_pairs(workplace.path)
    recipe = "base_model: embedded\ndata: {train: train.jsonl, eval: test.jsonl}\nregister: my-rewards\n"
    (workplace.path / "finetune.yaml").write_text(recipe)
    options = ["-P", "max_steps=120", "-P", "eval.max_rows=120"]
    ended = workplace.finetune_run(str(workplace.path), "-e", "reward", *options)
    assert ended.returncode == 0, ended.stdout
    for words in ("lora x reward on embedded", "better than the rule", "champion version 1", "calibration: right in"):
        assert words in ended.stdout
    run = workplace.only_run()
    assert run.data.metrics["eval/adapter/preference_accuracy"] > 0.7
    assert run.data.metrics["reload/max_reward"] < 1e-4
    again = workplace.finetune_run(
        *(str(workplace.path), "-e", "evaluate", "-P", "model=models:/my-rewards/1", "-P", "eval_data=test.jsonl"),
        *("-P", "eval.max_rows=120"),
    )
    assert again.returncode == 0, again.stdout
    (evaluation,) = [each for each in workplace.runs() if each.info.run_id != run.info.run_id]
    for name, value in run.data.metrics.items():
        if name.startswith(("eval/", "reward/")):
            assert evaluation.data.metrics[name] == pytest.approx(value, abs=1e-4), name
    refused = workplace.run(["mlflow_finetune_plugin.cli", "serve", "my-rewards", "--engine", "transformers"])
    assert refused.returncode != 0
    assert "my-rewards/1 is a reward model: it gives scores and no answers" in refused.stdout
