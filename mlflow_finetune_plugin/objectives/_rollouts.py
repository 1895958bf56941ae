"""What the objectives that learn from rewards have in common: their options, and what their training needs beside the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from mlflow_finetune_plugin.methods import Rollouts, Sampler, TrainerContext
from mlflow_finetune_plugin.rewards import RewardSettings, load_rewards
from mlflow_finetune_plugin.section import Section
from mlflow_finetune_plugin.training.alarms.settings import AlarmSettings

if TYPE_CHECKING:
    from mlflow_finetune_plugin.training.rollouts.engine_sampler import Sampling

LOGS = (
    "reward",
    "reward_std",
    "rewards/*/mean",
    "rewards/*/std",
    "rewards_skipped",
    "frac_reward_zero_std",
    "entropy",
    "kl",
    "repeated_text",
    "completions/mean_length",
    "completions/max_length",
    "completions/clipped_ratio",
    "clip_ratio/*",
    "sampling/*",
)
"""Figures of TRL's trainers with their names; ``rewards_skipped`` and ``repeated_text`` are this package's."""


class RolloutOptions(Section):
    """Options of every objective that learns from rewards, named as in TRL."""

    rewards: list[RewardSettings] = Field(
        [], description="Parts of the reward: a Python function, a grader, an MLflow scorer, a reward model or a judge."
    )
    num_generations: int = Field(8, ge=2, description="Completions of each prompt; they are compared with each other.")
    max_completion_length: int = Field(256, gt=0, description="Most tokens of a completion.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature of completions.")
    top_p: float = Field(1.0, gt=0, le=1, description="Share of the probability that tokens are sampled from.")
    top_k: int = Field(0, ge=0, description="Number of likeliest tokens that are sampled from; 0: all.")
    num_iterations: int = Field(1, gt=0, description="Updates with the same completions.")
    epsilon: float = Field(0.2, gt=0, description="Clipping of the probability ratio.")
    epsilon_high: float | None = Field(
        None, gt=0, description="Upper clipping of the ratio; null: epsilon. DAPO uses 0.28."
    )
    mask_truncated_completions: bool = Field(
        False, description="Leave completions that reach max_completion_length out of the loss."
    )
    sampler: Sampler = Field(
        "trainer",
        description="What samples completions: the model in training (trainer), the serving engine in a child process (engine), or "
        "vLLM in the training process (colocated_vllm; needs a GPU, not measured).",
    )
    vllm_gpu_memory_utilization: float = Field(
        0.3, gt=0, le=1, description="Share of the GPU's memory for vLLM, where it samples."
    )
    start_check: bool = Field(
        True,
        description="Refuse a training when the rewards of nearly all sampled prompts do not differ; false only notes it.",
    )
    start_prompts: int = Field(32, gt=0, description="Prompts that are sampled before the first step.")
    pass_reward: float = Field(
        1.0,
        description="Value of the first part of the reward from which a completion is solved, for pass@k before training.",
    )
    alarms: AlarmSettings = Field(default_factory=AlarmSettings, description="Thresholds of the alarms while training.")

    @field_validator("rewards", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """Read one part as a list of one."""
        return [value] if isinstance(value, (str, Mapping)) else value


def learning_rate(rate: float, options: RolloutOptions) -> tuple[float, str]:
    """Return a quarter of the adaptation's rate for imitation."""
    return rate / 4, f"a quarter of {rate:g}, the rate for answers: steps on sampled completions are noisy"


def option_faults(options: RolloutOptions) -> list[str]:
    """Return what is wrong with the options together."""
    faults = []
    if not options.rewards:
        faults.append("rewards: there is none; fix: -P reward=reward.py:score, or options.rewards")
    if options.epsilon_high is not None and options.epsilon_high < options.epsilon:
        faults.append("epsilon_high is below epsilon; fix: at least epsilon")
    return faults


def rollouts(options: Any) -> Rollouts:
    """Return what is generated while training."""
    return Rollouts(
        num_generations=options.num_generations,
        max_completion_length=options.max_completion_length,
        num_iterations=options.num_iterations,
        compares_with_start=options.beta > 0,
        sampler=options.sampler,
        vllm_gpu_memory_utilization=options.vllm_gpu_memory_utilization,
    )


@contextmanager
def trainer_arguments(options: RolloutOptions, context: TrainerContext) -> Iterator[Mapping[str, Any]]:
    """Start the processes of the rewards for the time of the training, end the engine that samples, and watch the training."""
    from mlflow_finetune_plugin.training.alarms.watch import AlarmWatch
    from mlflow_finetune_plugin.training.rollouts.completion_table import CompletionTables
    from mlflow_finetune_plugin.training.rollouts.engine_sampler import engine_sampler
    from mlflow_finetune_plugin.training.rollouts.start_check import StartCheck

    start = StartCheck(
        context.folder,
        context.report,
        prompts=options.start_prompts,
        pass_reward=options.pass_reward,
        refuses=options.start_check,
    )
    with load_rewards(options.rewards, Path.cwd()) as rewards, ExitStack() as stack:
        samples = options.sampler == "engine"
        yield {
            "rewards": rewards,
            "sampler": stack.enter_context(engine_sampler(context, _sampling(options))) if samples else None,
            "renderer": context.renderer,
            "watchers": [start, CompletionTables(context.folder, context.report)],
            "callbacks": [AlarmWatch(options.alarms, context.report)],
        }


def _sampling(options: RolloutOptions) -> Sampling:
    from mlflow_finetune_plugin.training.rollouts.engine_sampler import Sampling

    return Sampling(
        max_tokens=options.max_completion_length,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        gpu_memory_utilization=options.vllm_gpu_memory_utilization,
    )


def config_arguments(options: RolloutOptions, *names: str) -> dict[str, object]:
    """Return the options, and further ones by name, as arguments of TRL's config."""
    ours = {
        "rewards",
        "sampler",
        "vllm_gpu_memory_utilization",
        "start_check",
        "start_prompts",
        "pass_reward",
        "alarms",
    }
    vllm = {"use_vllm": True, "vllm_gpu_memory_utilization": options.vllm_gpu_memory_utilization}
    return {
        **{name: getattr(options, name) for name in RolloutOptions.model_fields if name not in ours},
        **(vllm if options.sampler == "colocated_vllm" else {}),
        **{name: getattr(options, name) for name in names},
        "vllm_mode": "colocate",
        "remove_unused_columns": False,
        # Ratios of probabilities need the same network in both passes, so dropout is off while training.
        "disable_dropout": True,
        "log_completions": False,
    }
