"""Check what a recipe says against its objective: options that do not fit together, and settings that it would not use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mlflow_finetune_plugin.config.problems import Origins
from mlflow_finetune_plugin.config.reward_options import reward_metric_faults, rewards_of
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED
from mlflow_finetune_plugin.methods import Objective, Rollouts

PAIR_METRIC = "preference_accuracy"
"""The metric of pairs, which a reward model is proven by."""

_ALWAYS_MEASURED = ("eval_loss", "eval_mean_token_accuracy")


def objective_problems(
    objective: Objective, name: str, options: Any, sections: Mapping[str, Any], origin: Origins
) -> Iterator[str]:
    """Yield the problems of an objective with its valid options and the other sections, each with its place and a fix."""
    for fault in objective.option_faults(options):
        key = fault.split(":")[0].split()[0]
        yield f"{origin.of(('options', key))}: options.{fault}"
    training = sections.get("training") or TrainingSettings()
    always = _ALWAYS_MEASURED if objective.MODEL == "causal" else _ALWAYS_MEASURED[:1]
    measured = [*always, *(f"eval_{figure}" for figure in objective.LOGS)]
    if not any(fnmatchcase(training.metric_for_best_model, figure) for figure in measured):
        yield (
            f"{origin.of(('training', 'metric_for_best_model'))}: training.metric_for_best_model = "
            f"{training.metric_for_best_model!r}: {name} does not measure it; fix: pick one of: {', '.join(measured)}"
        )
    metrics = sections["eval"].metrics if sections.get("eval") is not None else "auto"
    if PAIR_METRIC in metrics and objective.ROWS != "pairs":
        yield (
            f"{origin.of(('eval', 'metrics'))}: eval.metrics: {PAIR_METRIC} compares the answers of a pair, and the held-out rows "
            f"of {name} are not pairs; fix: remove it"
        )
    named = [] if metrics == "auto" else metrics
    yield from (
        f"{origin.of(('eval', 'metrics'))}: {fault}" for fault in reward_metric_faults(named, rewards_of(options))
    )
    if objective.MODEL == "score":
        yield from _reward_model_problems(name, sections, origin)
    if (rollouts := objective.rollouts(options)) is not None:
        yield from _rollout_problems(rollouts, name, training, origin)
    if training.label_smoothing_factor and objective.ROWS != "answers":
        yield (
            f"{origin.of(('training', 'label_smoothing_factor'))}: training.label_smoothing_factor is not used by {name}; "
            "fix: remove it"
        )


def _reward_model_problems(name: str, sections: Mapping[str, Any], origin: Origins) -> Iterator[str]:
    """Yield the settings that need answers, which a reward model does not write."""
    held_out, register = sections.get("eval"), sections.get("register")
    for index, metric in enumerate(held_out.metrics if held_out is not None and held_out.metrics != "auto" else []):
        if metric in PACKAGED and metric != PAIR_METRIC:
            yield (
                f"{origin.of(('eval', 'metrics', index))}: eval.metrics: {metric} compares answers, and {name} trains a reward "
                f"model, which gives scores; fix: {PAIR_METRIC}, or remove it"
            )
    if held_out is not None and held_out.forgetting:
        yield (
            f"{origin.of(('eval', 'forgetting'))}: eval.forgetting is not measured for a reward model, which writes no text; "
            "fix: remove it"
        )
    if register is None:
        return
    if register.precisions:
        yield f"{origin.of(('register', 'precisions'))}: register.precisions: a reward model is not served; fix: remove it"
    gate = register.gate
    if gate is None:
        return
    asked = {"forgetting": gate.forgetting, "latency": gate.latency, "votes": gate.votes and gate.votes.required}
    asked["gain.through"] = gate.gain is not None and gate.gain.through == "serving"
    for key, value in asked.items():
        if value:
            yield (
                f"{origin.of(('register', 'gate', *key.split('.')))}: register.gate.{key}: no version can pass, because a reward "
                "model writes no answers and is not served; fix: remove it"
            )


def _rollout_problems(rollouts: Rollouts, name: str, training: TrainingSettings, origin: Origins) -> Iterator[str]:
    """Yield what an objective that samples completions cannot do."""
    if training.batching not in ("auto", "padded"):
        yield (
            f"{origin.of(('training', 'batching'))}: training.batching = {training.batching!r}: {name} trains on completions that "
            "are padded, because TRL's trainer computes them; fix: leave it out"
        )
    chooses = training.load_best_model_at_end or training.early_stopping_patience is not None
    if chooses and training.metric_for_best_model in _ALWAYS_MEASURED:
        yield (
            f"{origin.of(('training', 'metric_for_best_model'))}: training.metric_for_best_model = "
            f"{training.metric_for_best_model!r}: the loss of {name} says nothing about the answers; fix: eval_reward"
        )
    rows, times = training.per_device_train_batch_size, training.gradient_accumulation_steps
    if rows != "auto" and times != "auto" and (rows * times) % rollouts.num_generations:
        yield (
            f"{origin.of(('training', 'per_device_train_batch_size'))}: training.per_device_train_batch_size = {rows} x "
            f"gradient_accumulation_steps = {times}: these are completions, and no multiple of num_generations = "
            f"{rollouts.num_generations}; fix: a multiple"
        )
