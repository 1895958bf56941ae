"""Decide and check what an objective that samples completions needs: the batch, and room for completions.

The rows of a step are then completions, ``num_generations`` of each prompt, and a group of completions stays in one generation.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.base_models.facts import Reasons
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.methods import Method, Rollouts

if TYPE_CHECKING:
    from peft import PeftConfig

PROMPTS_A_STEP = 8
"""Prompts of a step by default: 64 completions, with which the measured tasks were learned (docs/guides/reinforcement.md)."""


def resolve_rollouts(
    training: TrainingSettings, rollouts: Rollouts, *, prompts: int, on_gpu: bool, reasons: Reasons
) -> TrainingSettings:
    """Return the training section with the batch in completions, divisible by ``num_generations``, and ``batching`` padded.

    Args:
        training: The section as in the recipe.
        rollouts: What the objective samples.
        prompts: Training prompts.
        on_gpu: Whether training runs on a GPU.
        reasons: Receives the reason for each choice.
    """
    group, update = rollouts.num_generations, dict[str, object]()
    rows, times = training.per_device_train_batch_size, training.gradient_accumulation_steps
    wanted = min(PROMPTS_A_STEP, prompts) * group
    if rows == "auto":
        rows = wanted if times == "auto" and not on_gpu else group
        update["per_device_train_batch_size"] = rows
        reasons["training.per_device_train_batch_size"] = f"{rows}: completions, {group} of each prompt"
    if times == "auto":
        times = _accumulation(int(rows), wanted, group)
        update["gradient_accumulation_steps"] = times
        reasons["training.gradient_accumulation_steps"] = f"{times}: a step of {int(rows) * times // group} prompts"
    if training.batching == "auto":
        update["batching"] = "padded"
        reasons["training.batching"] = "padded: the only form in which TRL's trainer computes completions"
    return training.model_copy(update=update)


def _accumulation(rows: int, wanted: int, group: int) -> int:
    """Return with how many micro-steps of so many completions a step has at least the wanted ones, in whole groups."""
    times = max(1, ceil(wanted / rows))
    while (rows * times) % group:
        times += 1
    return times


def rollout_problems(
    training: TrainingSettings,
    rollouts: Rollouts,
    *,
    prompts: int,
    longest_prompt: int,
    context_length: int | None,
    processes: int,
) -> list[str]:
    """Return what cannot be trained with settings without ``auto``, each with a fix."""
    rows, group = int(training.per_device_train_batch_size), rollouts.num_generations
    step = rows * int(training.gradient_accumulation_steps)
    problems = []
    if processes > 1:
        problems.append(
            f"training with rewards runs in one process, and this run has {processes}; fix: -c '{{\"gpus_per_node\": 1}}'"
        )
    if step % group:
        problems.append(
            f"a step has {step} completions (training.per_device_train_batch_size x gradient_accumulation_steps), which is not a "
            f"multiple of num_generations = {group}; fix: {ceil(step / group) * group} completions a step"
        )
    elif step // group > prompts:
        problems.append(
            f"a step has {step // group} prompts ({step} completions, {group} of each), and the data has {prompts}; "
            f"fix: -P per_device_train_batch_size={prompts * group} -P gradient_accumulation_steps=1, or more prompts"
        )
    if training.eval_steps is not None and rows % group:
        problems.append(
            f"training.per_device_train_batch_size = {rows}: evaluations need a multiple of num_generations = {group}; "
            f"fix: {ceil(rows / group) * group}, or no eval_steps"
        )
    if context_length is not None and longest_prompt + rollouts.max_completion_length > context_length:
        problems.append(
            f"max_completion_length = {rollouts.max_completion_length}: the longest prompt has {longest_prompt} tokens, and the "
            f"base's context {context_length}; fix: -P max_completion_length={max(1, context_length - longest_prompt)}, or "
            "shorter prompts"
        )
    return problems


def check_rollouts(training: TrainingSettings, rollouts: Rollouts, **facts: int | None) -> None:
    """Raise ConfigError with what ``rollout_problems`` returns."""
    problems = rollout_problems(training, rollouts, **facts)  # type: ignore[arg-type]
    if problems:
        raise ConfigError(problems)


def sampler_problems(method: Method, rollouts: Rollouts, *, on_gpu: bool) -> list[str]:
    """Return why the sampler cannot sample with the adaptation of the run on this machine, each with a fix."""
    problems = []
    if rollouts.sampler == "colocated_vllm" and not on_gpu:
        problems.append(
            "options.sampler = 'colocated_vllm': it needs a GPU, because vLLM for CPUs does not take trained weights; fix: engine, "
            "or trainer"
        )
    if rollouts.sampler == "engine" and not method.adaptation.may_save_while_training(method.adaptation_options):
        problems.append(
            "options.sampler = 'engine': this initialisation of the adapter changes the base until the training ends, and the engine "
            "holds the untouched base; fix: options.init: default, or -P sampler=trainer"
        )
    return problems


def check_engine_serves(config: PeftConfig) -> None:
    """Raise ConfigError if the engine cannot load adapters of this kind."""
    from mlflow_finetune_plugin.serving.transformers_engine.trees import why_not_served

    reason = why_not_served(config)
    if reason is not None:
        raise ConfigError([f"options.sampler = 'engine': {reason}; or -P sampler=trainer"])


def steps_with_rollouts(training: TrainingSettings, rollouts: Rollouts, prompts: int) -> int:
    """Return the optimizer steps of the run, as TRL counts them: prompts that do not fill a step are left out of a pass."""
    if training.max_steps is not None:
        return training.max_steps
    completions = int(training.per_device_train_batch_size) * int(training.gradient_accumulation_steps)
    steps_a_pass = prompts // (completions // rollouts.num_generations) * rollouts.num_iterations
    return ceil(steps_a_pass * float(training.num_train_epochs))
