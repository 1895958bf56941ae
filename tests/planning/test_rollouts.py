"""The batch of an objective that samples: completions in whole groups, and room for them."""

import pytest

from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.methods import Method, Rollouts, load_method
from mlflow_finetune_plugin.planning.rollouts import (
    check_engine_serves,
    check_rollouts,
    resolve_rollouts,
    rollout_problems,
    sampler_problems,
    steps_with_rollouts,
)

EIGHT = Rollouts(num_generations=8, max_completion_length=100)


def resolved(rollouts=EIGHT, *, prompts=400, on_gpu=False, **settings):
    reasons = {}
    training = resolve_rollouts(TrainingSettings(**settings), rollouts, prompts=prompts, on_gpu=on_gpu, reasons=reasons)
    return training, reasons


def problems(rollouts=EIGHT, *, rows=64, times=1, prompts=400, longest=20, context=512, processes=1, **settings):
    training = TrainingSettings(per_device_train_batch_size=rows, gradient_accumulation_steps=times, **settings)
    return rollout_problems(
        training, rollouts, prompts=prompts, longest_prompt=longest, context_length=context, processes=processes
    )


@pytest.mark.parametrize(
    ("on_gpu", "prompts", "batch"), [(False, 400, (64, 1)), (True, 400, (8, 8)), (False, 3, (24, 1)), (True, 3, (8, 3))]
)
def test_a_step_has_eight_prompts_with_all_their_completions_or_every_prompt(on_gpu, prompts, batch):
    training, reasons = resolved(on_gpu=on_gpu, prompts=prompts)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == batch
    assert training.batching == "padded"
    assert "completions, 8 of each prompt" in reasons["training.per_device_train_batch_size"]


@pytest.mark.parametrize(("rows", "times"), [(4, 16), (6, 12), (16, 4), (100, 2)])
def test_accumulation_completes_the_groups_of_a_given_batch(rows, times):
    training, _ = resolved(per_device_train_batch_size=rows)
    assert training.gradient_accumulation_steps == times
    assert (rows * times) % 8 == 0


def test_settings_of_the_recipe_stay():
    training, reasons = resolved(per_device_train_batch_size=16, gradient_accumulation_steps=3)
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == (16, 3)
    assert list(reasons) == ["training.batching"]


def test_what_does_not_divide_or_fit_is_refused_with_a_fix():
    assert problems() == []
    assert "20 completions" in problems(rows=20)[0]
    assert "fix: 24 completions a step" in problems(rows=20)[0]
    assert "8 prompts" in problems(prompts=5)[0]
    assert "fix: -P per_device_train_batch_size=40" in problems(prompts=5)[0]
    assert problems(rows=4, times=16) == []
    assert "fix: 8, or no eval_steps" in problems(rows=4, times=16, eval_steps=5)[0]
    assert "fix: -P max_completion_length=60" in problems(longest=452)[0]
    assert problems(longest=10_000, context=None) == []
    assert "one process, and this run has 2" in problems(processes=2)[0]


def test_all_problems_are_raised_together():
    training = TrainingSettings(per_device_train_batch_size=20, gradient_accumulation_steps=1)
    with pytest.raises(ConfigError, match="2 problems"):
        check_rollouts(training, EIGHT, prompts=400, longest_prompt=500, context_length=512, processes=1)


@pytest.mark.parametrize(("iterations", "epochs", "steps"), [(1, 1.0, 6), (2, 1.0, 12), (1, 2.5, 15)])
def test_steps_leave_out_prompts_that_do_not_fill_a_step(iterations, epochs, steps):
    training, _ = resolved(num_train_epochs=epochs)
    rollouts = Rollouts(num_generations=8, max_completion_length=100, num_iterations=iterations)
    assert steps_with_rollouts(training, rollouts, prompts=55) == steps
    assert steps_with_rollouts(training.model_copy(update={"max_steps": 7}), rollouts, prompts=55) == 7


def samplers_problems(sampler, *, on_gpu=False, **options):
    adaptation, objective = load_method("adaptation", "lora"), load_method("objective", "grpo")
    method = Method(adaptation, adaptation.Options(**options), objective, objective.Options(sampler=sampler))
    return sampler_problems(method, method.objective.rollouts(method.objective_options), on_gpu=on_gpu)


@pytest.mark.bad_input
def test_a_sampler_that_cannot_sample_this_run_is_refused_with_a_fix():
    assert samplers_problems("trainer", init="pissa") == samplers_problems("engine") == []
    assert "fix: options.init: default, or -P sampler=trainer" in samplers_problems("engine", init="pissa")[0]
    assert "it needs a GPU" in samplers_problems("colocated_vllm")[0]
    assert samplers_problems("colocated_vllm", on_gpu=True) == []


@pytest.mark.bad_input
def test_an_adaptation_that_the_engine_cannot_serve_is_refused_with_its_reason():
    from peft import LoraConfig, XLoraConfig

    check_engine_serves(LoraConfig())
    with pytest.raises(
        ConfigError, match="cannot serve XLORA adapters of this kind; fix: use plain LoRA; or -P sampler=trainer"
    ):
        check_engine_serves(XLoraConfig(hidden_size=8, adapters={"a": "a"}))
