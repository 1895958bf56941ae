"""Completions that a serving engine samples: they are those of the model in training, and the engine never outlives the run."""

import json
import os
import re
import signal
import threading
import time

import psutil
import pytest
import torch
from engine_process import EMBEDDED
from peft import LoraConfig, get_peft_model
from prompt_rows import contains, prompt_rows, renderer_of
from training.trained import logged, run
from transformers import AutoModelForCausalLM

from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.evaluation.virtual_tokens import virtual_token_ids
from mlflow_finetune_plugin.jobs.report import ReportReader
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.rollouts.engine_sampler import ENGINE_FOLDER
from mlflow_finetune_plugin.training.saving import Saves

pytestmark = [pytest.mark.train, pytest.mark.process]

QUESTIONS = [
    (f"What is {a} plus {b}?", None) for a, b in [(1, 2), (3, 5), (4, 2), (6, 1), (2, 2), (7, 1), (3, 3), (5, 4)]
]
SETTINGS = {"max_steps": 2, "per_device_train_batch_size": 32, "learning_rate": 5e-3, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def renderer():
    return renderer_of(EMBEDDED)


def adapted_embedded(scale=0.0):
    """A LoRA that changes no answer, or with a scale one that changes them."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    config = LoraConfig(
        r=8, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=not scale
    )
    model = get_peft_model(model, config)
    if scale:
        with torch.no_grad():
            for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
                parameter.mul_(scale)
    return model


def train_on(renderer, folder, sampler="engine", objective="grpo", more=None, model=None, **settings):
    """Reward answers with the digit 1: the embedded base gives them to some of the sums."""
    common = {"rewards": [contains("1")], "num_generations": 8, "max_completion_length": 6, "start_prompts": 4}
    options = load_method("objective", objective).Options(**{**common, "sampler": sampler, **(more or {})})
    return run(
        EMBEDDED,
        folder,
        model=model or adapted_embedded(),
        rows=prompt_rows(renderer, QUESTIONS),
        objective=objective,
        objective_options=options,
        renderer=renderer,
        **{**SETTINGS, **settings},
    )


def engine_pid(folder):
    """The id that the report of a run gives to its engine; None before it is started."""
    lines = [event["text"] for event in ReportReader(folder / "report.jsonl").new_events() if event["event"] == "stage"]
    ids = [int(match[1]) for line in lines if (match := re.search(r"engine in process (\d+)", line))]
    return ids[0] if ids else None


def tables(folder):
    return [json.loads(path.read_text()) for path in [folder / "at_start.json", *sorted(folder.glob("completions-*"))]]


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_greedy_completions_are_those_of_the_trainer(renderer, tmp_path, objective):
    greedy = {"temperature": 1e-6, "start_check": False}
    for sampler in ("trainer", "engine"):
        train_on(renderer, tmp_path / sampler, sampler, objective, more=greedy, model=adapted_embedded(0.3))
    assert tables(tmp_path / "engine") == tables(tmp_path / "trainer")
    assert max(value for _, value in logged(tmp_path / "engine", "train/sampling/sampling_logp_difference/max")) < 1e-4


def test_engine_puts_the_virtual_tokens_of_the_model_in_front(renderer, tmp_path):
    """The rows of the training start with them, and the requests to the engine do not."""
    prompt = load_method("adaptation", "prompt")
    options = prompt.Options(num_virtual_tokens=4)
    greedy = {"rewards": [contains("1")], "num_generations": 8, "max_completion_length": 6, "temperature": 1e-6}
    for sampler in ("trainer", "engine"):
        base = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
        model = prompt.apply(base, options, seed=0, folder=tmp_path)
        first = virtual_token_ids(model)
        run(
            EMBEDDED,
            tmp_path / sampler,
            model=model,
            adaptation="prompt",
            options=options,
            rows=prompt_rows(renderer, QUESTIONS).map(
                lambda row, first=first: {"input_ids": [*first, *row["input_ids"]]}
            ),
            objective="grpo",
            objective_options=load_method("objective", "grpo").Options(**greedy, sampler=sampler, start_check=False),
            renderer=renderer,
            **SETTINGS,
        )
    assert tables(tmp_path / "engine") == tables(tmp_path / "trainer")
    assert max(value for _, value in logged(tmp_path / "engine", "train/sampling/sampling_logp_difference/max")) < 1e-4


@pytest.fixture(scope="module")
def whole(renderer, tmp_path_factory):
    """A training of 5 steps, with checkpoints, and its model."""
    folder = tmp_path_factory.mktemp("whole")
    saves = Saves(folder / "checkpoints", 9, lambda: {}, lambda checkpoint: None)
    result, model = train_on(renderer, folder, max_steps=5, save_steps=3, saves=saves)
    return folder, result, model


def test_the_reward_rises(whole):
    folder, *_ = whole
    rewards = [value for _, value in logged(folder, "train/reward")]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.2


def test_a_resumed_training_samples_the_same_to_the_last_bit(renderer, tmp_path, whole):
    """Step 3 is in the second pass over the prompts."""
    folder, result, model = whole
    torch.manual_seed(99)  # whatever the process did before
    checkpoint = Checkpoint(folder / "checkpoints" / "checkpoint-3", 3, {})
    again, resumed = train_on(renderer, tmp_path, max_steps=5, save_steps=3, checkpoint=checkpoint)
    for (name, tensor), (_, value) in zip(model.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(tensor, value), name
    assert again.losses == result.losses
    for name in ("train/reward", "train/entropy", "train/sampling/sampling_logp_difference/max"):
        assert logged(tmp_path, name)[-2:] == logged(folder, name)[-2:], name


def test_nothing_of_the_engine_is_left_but_its_log(whole):
    folder, *_ = whole
    assert not list((folder / ENGINE_FOLDER).glob("step-*"))
    assert (folder / ENGINE_FOLDER / "engine.log").exists()
    assert not psutil.pid_exists(engine_pid(folder))


def test_each_adapter_is_loaded_once_under_its_step_and_digest(whole):
    folder, *_ = whole
    log = (folder / ENGINE_FOLDER / "engine.log").read_text()
    loaded = re.findall(r"adapter_loaded name=(step-\d{6}-[0-9a-f]{12})", log)
    assert [name[5:11] for name in loaded] == [f"{step:06}" for step in range(6)]  # the last for the last table
    assert len(set(loaded)) == len(loaded)


def test_rloo_learns_from_the_completions_of_an_engine(renderer, tmp_path):
    train_on(renderer, tmp_path, objective="rloo", max_steps=3)
    rewards = [value for _, value in logged(tmp_path, "train/reward")]
    assert sum(rewards[-2:]) / 2 > sum(rewards[:2]) / 2 + 0.2


@pytest.mark.fault
def test_an_engine_that_is_killed_ends_the_training_with_one_error(renderer, tmp_path):
    def kill_after_the_first_step():
        while not list((tmp_path / ENGINE_FOLDER).glob("step-000001-*")):
            time.sleep(0.01)
        os.kill(engine_pid(tmp_path), signal.SIGKILL)

    killer = threading.Thread(target=kill_after_the_first_step)
    killer.start()
    with pytest.raises(
        TrainingError,
        match=r"the transformers engine ended while sampling completions: it ended with code -9: .*its log: .*engine\.log; fix: ",
    ):
        train_on(renderer, tmp_path, max_steps=500)
    killer.join()
    assert not psutil.pid_exists(engine_pid(tmp_path))
    assert not list((tmp_path / ENGINE_FOLDER).glob("step-*"))


@pytest.mark.fault
def test_a_request_that_fails_in_the_engine_ends_the_training_with_its_reason(renderer, tmp_path):
    model = adapted_embedded()
    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"fails sampling completions: 500 .*logits contain NaN.*; fix: "):
        train_on(renderer, tmp_path, model=model)
    assert not psutil.pid_exists(engine_pid(tmp_path))
