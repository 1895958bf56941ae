"""Problems of sections that are valid by themselves: settings that contradict each other, and names that MLflow refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.config.problems import Origins, shown
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.config.yaml_source import KeyPath
from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.metric_modules import check_metric_name
from mlflow_finetune_plugin.gate.policy import GatePolicy

_NAME_PROBLEMS = re.compile(r"[/:@%#?\"'\\\x00-\x1f\x7f-\x9f\u2028\u2029]")


def _chooses_weights(training: TrainingSettings) -> bool:
    return training.load_best_model_at_end or training.early_stopping_patience is not None


def section_problems(sections: Mapping[str, Any], origin: Origins) -> list[str]:
    """Return the problems that types do not reveal, of the sections that are otherwise valid."""
    problems: list[str] = []
    register, held_out = sections.get("register"), sections.get("eval")
    training = sections.get("training")
    if training is not None and training.eval_steps is None:
        problems += [
            f"{origin.of(('training', key))}: training.{key} needs losses to compare; fix: set training.eval_steps"
            for key in ("load_best_model_at_end", "early_stopping_patience")
            if getattr(training, key)
        ]
    if training is not None and "metric_for_best_model" in training.model_fields_set and not _chooses_weights(training):
        problems.append(
            f"{origin.of(('training', 'metric_for_best_model'))}: training.metric_for_best_model chooses nothing by itself; "
            "fix: set training.load_best_model_at_end: true (and training.eval_steps), or training.early_stopping_patience"
        )
    data = sections.get("data")
    measures = "training" in sections and (training is None or training.eval_steps is not None)
    if data is not None and data.validation is not None and not measures:
        problems.append(
            f"{origin.of(('data', 'validation'))}: these rows would be neither trained on nor measured; fix: set training.eval_steps"
        )
    if register is not None:
        problems += [f"{origin.of(('register', 'name'))}: {fault}" for fault in register_name_problems(register.name)]
    gate = register.gate if register is not None else None
    for key_path, metric in _gate_metrics(gate):
        try:
            check_metric_name(metric)
        except FinetuneError as error:
            problems.append(f"{origin.of(('register', 'gate', *key_path))}: {error}")
    if gate is not None and gate.forgetting is not None and held_out is not None and held_out.forgetting is False:
        problems.append(
            f"{origin.of(('register', 'gate', 'forgetting'))}: no version can pass: eval.forgetting is off; "
            "fix: leave one of the two out"
        )
    for index, metric in enumerate(held_out.metrics if held_out is not None and held_out.metrics != "auto" else []):
        try:
            if not metric.endswith(".py"):  # files are looked for once paths are absolute
                check_metric_name(metric)
        except FinetuneError as error:
            problems.append(f"{origin.of(('eval', 'metrics', index))}: {error}")
    return problems


def _gate_metrics(gate: GatePolicy | None) -> list[tuple[KeyPath, str]]:
    """Return the metrics that a policy names, with their key paths. Files are left out, because the proof looks for
    them.
    """
    if gate is None:
        return []
    named: list[tuple[KeyPath, str]] = [(("regressions", i), bound.metric) for i, bound in enumerate(gate.regressions)]
    if gate.gain is not None and gate.gain.metric is not None:
        named.append((("gain", "metric"), gate.gain.metric))
    return [(key_path, metric) for key_path, metric in named if not metric.endswith(".py")]


def register_name_problems(name: str) -> list[str]:
    """Return why MLflow's registry, or the served names ``NAME@ALIAS`` and ``NAME/VERSION``, cannot contain this name."""
    if name == "base" or name.endswith(".promoting"):
        return [f"register.name = {name!r}: the name is reserved; fix: choose another"]
    if name != name.strip() or not name.strip("."):
        return [f"register.name = {shown(name)}: starts or ends with a blank, or is only dots; fix: remove them"]
    if match := _NAME_PROBLEMS.search(name):
        return [
            f"register.name = {shown(name)}: may not contain {match.group()!r}; fix: use letters, digits, '-', '_' and '.'"
        ]
    return []
