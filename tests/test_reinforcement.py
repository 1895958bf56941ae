"""Reinforcement learning through the pipeline: rows without references, and the trap of a length penalty."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pipeline_runs import Ran, relayed, run_pipeline
from prompt_rows import prompt_rows, renderer_of
from training.trained import events, logged, run
from transformers import AutoModelForCausalLM

import mlflow_finetune_plugin
from mlflow_finetune_plugin.config.absolute_paths import resolve_paths
from mlflow_finetune_plugin.config.evaluation import load_evaluation_config, resolve_evaluation_paths
from mlflow_finetune_plugin.config.run_config import load_config
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.jobs.run_record import RunRecord
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.stages import evaluate
from mlflow_finetune_plugin.stages.context import RunContext

pytestmark = [pytest.mark.train]
EMBEDDED = Path(mlflow_finetune_plugin.__file__).parent / "embedded_base"
SAYS_A = "{grader: {type: string_check, name: says_a, operation: ilike, input: '{{sample.output_text}}', reference: a}, weight: 1.0}"


def project(folder, reward, *, references, **options):
    """A project of prompts whose answers should contain an ``a``."""
    folder.mkdir()
    rows = [
        {"prompt": f"Say: {word} number {i}"} | ({"reference": word} if references else {})
        for i, word in enumerate(WORDS)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = "".join(f", {name}: {value}" for name, value in options.items())
    (folder / "finetune.yaml").write_text(
        "data: {train: data.jsonl, eval: 0.25}\n"
        f"options: {{rewards: [{reward}], max_completion_length: 6, num_generations: 4{more}}}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 16, gradient_accumulation_steps: 1}\n"
        "eval: {forgetting: false}\n"
        "register: {name: says_a}\n"
    )
    return folder


WORDS = [
    "cat",
    "dog",
    "house",
    "car",
    "boy",
    "tree",
    "lamp",
    "king",
    "queen",
    "box",
    "hat",
    "ball",
    "bird",
    "fish",
    "book",
    "cup",
] * 2


def ran(tmp_path, store, objective, *, references, reward=SAYS_A, **options):
    folder = project(tmp_path / "project", reward, references=references, **options)
    config = resolve_paths(load_config(folder, objective, {}, caller=tmp_path), folder)
    return run_pipeline(tmp_path / "run", store, config)


def test_rows_without_references_are_proven_by_their_reward_alone(tmp_path, empty_store):
    result = ran(tmp_path, empty_store, "grpo", references=False)
    metrics = result.run.data.metrics
    assert {
        "eval/base/reward",
        "eval/adapter/reward",
        "eval/gain_low/reward",
        "eval/kl",
        "start/pass_at_4",
    } <= metrics.keys()
    assert not [
        name for name in metrics if name.startswith("eval/") and ("perplexity" in name or "exact_match" in name)
    ]
    table = json.loads(result.artifact("proof/rows.json").read_text())
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    assert first["base_nats_per_token"] is None
    assert first["base_reward"] in (0.0, 1.0)
    assert result.artifact("completions/at_start.json").exists()


def evaluated(tmp_path, trained, name, **parameters):
    """Evaluate the registered version in the same project, and return the new run."""
    project_folder = tmp_path / "project"
    overrides = {"model": "models:/says_a/1", **parameters}
    config = load_evaluation_config(project_folder, "evaluate", overrides, caller=tmp_path)
    config = resolve_evaluation_paths(config, project_folder)
    folder = tmp_path / name
    (folder / "work").mkdir(parents=True)
    run_id = trained.client.create_run("0").info.run_id
    with relayed(folder, RunRecord(trained.client, run_id, attempt=1)):
        evaluate.run(config, RunContext(run_id, trained.tracking_uri, folder / "work"), Report(folder / "report.jsonl"))
    return Ran(folder, config, trained.client, trained.tracking_uri, run_id, {})


OPEN = """
def opened(completion, letter):
    return float(letter in completion)
"""


@pytest.mark.process
def test_evaluation_scores_the_answers_of_a_version_by_the_rewards_of_the_project(tmp_path, empty_store):
    trained = ran(tmp_path, empty_store, "grpo", references=False)
    held_out = tmp_path / "new.jsonl"
    held_out.write_text("".join(json.dumps({"prompt": f"Say {word}", "letter": word[0]}) + "\n" for word in WORDS[:16]))
    (tmp_path / "reward.py").write_text(OPEN)
    for name, reward, letters in (("recipe", {}, ["a"] * 16), ("file", {"reward": "reward.py"}, [w[0] for w in WORDS])):
        result = evaluated(tmp_path, trained, name, eval_data=str(held_out), **reward)
        table = json.loads(result.artifact("proof/rows.json").read_text())
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        metrics = result.run.data.metrics
        for side in ("base", "adapter"):
            shares = [letter in row[f"{side}_answer"].lower() for row, letter in zip(rows, letters, strict=False)]
            assert [row[f"{side}_reward"] for row in rows] == shares
            assert metrics[f"eval/{side}/reward"] == pytest.approx(sum(shares) / 16)
        assert metrics["eval/gain_low/reward"] <= metrics["eval/gain/reward"] <= metrics["eval/gain_high/reward"]
        assert "eval/kl" in metrics
        assert not [metric for metric in metrics if "perplexity" in metric]
        assert result.run.data.params["eval.max_new_tokens"] == "6"
    assert result.artifact("finetune/reward.py").read_text() == OPEN
    (tmp_path / "reward.py").write_text(OPEN.replace("letter", "lettre"))
    with pytest.raises(ConfigError, match="lettre"):
        evaluated(tmp_path, trained, "misspelt", eval_data=str(held_out), reward="reward.py")


def test_a_mixture_is_compared_with_adapters_of_single_tasks_by_the_reward(tmp_path, empty_store):
    folder = project(tmp_path / "project", SAYS_A, references=True)
    rows = (folder / "data.jsonl").read_text().splitlines(keepends=True)
    for name in ("say", "spell"):
        (folder / f"{name}.jsonl").write_text("".join(rows).replace("Say: ", f"{name}: "))
        (folder / f"{name}.test.jsonl").write_text("".join(rows[:8]).replace("Say: ", f"{name} now: "))
    recipe = (folder / "finetune.yaml").read_text()
    recipe = recipe.replace(
        "data.jsonl, eval: 0.25", "[say.jsonl, spell.jsonl], eval: [say.test.jsonl, spell.test.jsonl]"
    )
    (folder / "finetune.yaml").write_text(
        recipe.replace("forgetting: false", "forgetting: false, single_task_references: true")
    )
    config = resolve_paths(load_config(folder, "grpo", {}, caller=tmp_path), folder)
    result = run_pipeline(tmp_path / "run", empty_store, config)
    table = json.loads(result.artifact("proof/interference.json").read_text())
    costs = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    by_reward = {row["task"]: row for row in costs if row["metric"] == "reward"}
    metrics = result.run.data.metrics
    assert len(by_reward) == 2
    for task, row in by_reward.items():
        assert row["gain"] == pytest.approx(row["mixture"] - row["single_task"])
        assert row["mixture"] == pytest.approx(metrics[f"eval/adapter/reward/{task}"])
        assert metrics[f"interference/reward/{task}"] == pytest.approx(row["gain"])


# the trap ------------------------------------------------------------------------------------------------------------


def sums(number, seed):
    chosen = random.Random(seed)
    pairs = [(chosen.randint(1, 9), chosen.randint(1, 9)) for _ in range(number)]
    return [(f"What is {a} plus {b}?", str(a + b)) for a, b in pairs]


REWARD = """
def exact(completion, reference):
    return float(completion.strip() == reference)


def short(completion):
    return -0.05 * len(completion)
"""


@pytest.mark.process
def test_a_length_penalty_collapses_trls_defaults_with_an_alarm_and_not_ours(tmp_path, monkeypatch):
    """TRL divides by the spread of a group: where all sums are wrong, the shortest wrong one counts as much as a right one."""
    (tmp_path / "reward.py").write_text(REWARD)
    monkeypatch.chdir(tmp_path)
    renderer = renderer_of(EMBEDDED)
    entropy = {}
    for name, more in {"ours": {}, "trl": {"loss_type": "dapo", "scale_rewards": "group", "beta": 0.0}}.items():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
        config = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        options = {"rewards": ["reward.py:exact", "reward.py:short"], "max_completion_length": 6, "start_prompts": 8}
        run(
            EMBEDDED,
            tmp_path / name,
            model=get_peft_model(base, config),
            rows=prompt_rows(renderer, sums(400, 0)),
            objective="grpo",
            objective_options=load_method("objective", "grpo").Options(**options, **more),
            renderer=renderer,
            max_steps=25,
            learning_rate=2e-3,
            lr_scheduler_type="constant",
            per_device_train_batch_size=64,
        )
        entropy[name] = [value for _, value in logged(tmp_path / name, "train/entropy")][-5:]
    assert max(entropy["trl"]) < 0.05
    assert sum(entropy["ours"]) / len(entropy["ours"]) > 0.2
    notes = {name: [event["text"] for event in events(tmp_path / name, "note")] for name in entropy}
    assert any("the entropy collapsed" in note for note in notes["trl"])
    assert not any("the entropy collapsed" in note for note in notes["ours"])
