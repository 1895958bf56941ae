"""Read and check the recipe sections that ``-e evaluate`` uses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from mlflow_finetune_plugin.config.absolute_paths import resolve_section_paths
from mlflow_finetune_plugin.config.objective_problems import PAIR_METRIC
from mlflow_finetune_plugin.config.overrides import (
    Where,
    apply_overrides,
    apply_top_level,
    base_from,
    leaves_of,
    parse_overrides,
    path_of,
)
from mlflow_finetune_plugin.config.problems import Origins, validated
from mlflow_finetune_plugin.config.reward_options import (
    FIELD,
    ScoringOptions,
    absolute_rewards,
    reward_metric_faults,
)
from mlflow_finetune_plugin.config.run_config import (
    EVALUATION_SECTIONS,
    read_recipe,
)
from mlflow_finetune_plugin.config.section_problems import section_problems
from mlflow_finetune_plugin.config.sections import EvalSettings, HeldOutSettings
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.rewards import RewardSettings
from mlflow_finetune_plugin.section import Section


class EvaluationConfig(Section):
    """The configuration of ``-e evaluate``.

    ``base_model`` is the base's folder if it has moved since the training. ``trust_code`` runs Python code in the model that
    this package does not know. ``rewards`` are the parts of the reward that the answers are scored with.
    """

    entry_point: str
    model: str
    base_model: str | None = None
    trust_code: bool = False
    data: HeldOutSettings
    eval: EvalSettings = Field(default_factory=EvalSettings)
    rewards: list[RewardSettings] = Field(default_factory=list)


def load_evaluation_config(
    project: Path,
    entry_point: str,
    overrides: Mapping[str, str],
    *,
    caller: Path,
    folders: Mapping[str, Path] | None = None,
) -> EvaluationConfig:
    """Read the recipe's sections ``data`` and ``eval`` for an evaluation. The arguments and errors are those of
    ``load_config``.
    """
    problems: list[str] = []
    values, origin = read_recipe(project, problems)
    options = values.get("options")
    scored = {FIELD: options[FIELD]} if isinstance(options, dict) and FIELD in options else {}
    values = {key: value for key, value in values.items() if key in EVALUATION_SECTIONS} | {"options": scored}
    assignments = parse_overrides(overrides)
    base = next((value for path, value in assignments if path == ("base_model", "name")), None)
    assignments = [(path, value) for path, value in assignments if path != ("base_model", "name")]
    overrides = {name: text for name, text in overrides.items() if path_of(name) != ("base_model", "name")}
    apply_top_level(values, assignments, ("model", "trust_code"), overrides, origin, problems)
    where = Where(caller, dict(folders or {}))
    leaves = leaves_of(EVALUATION_SECTIONS, {FIELD: "objective"})
    apply_overrides(values, assignments, overrides, leaves, EVALUATION_SECTIONS, where, origin, problems)
    if not isinstance(values.get("model"), str):
        problems.append("no model; fix: -P model=models:/NAME/VERSION")
    trust_code = str(values.get("trust_code", "false"))
    if trust_code not in ("true", "false"):
        problems.append(f"-P trust_code = {trust_code}: expected true or false")
    sections: dict[str, Any] = {
        name: validated(model, values[name], (name,), origin, problems)
        for name, model in EVALUATION_SECTIONS.items()
        if name in values
    }
    if not isinstance(getattr(sections.get("data"), "eval", None), list) and not problems:
        problems.append("no held-out rows; fix: -P eval_data=FILE")
    rewards = validated(ScoringOptions, values["options"], ("options",), origin, problems)
    problems += section_problems(sections, origin)
    parts = rewards.rewards if isinstance(rewards, ScoringOptions) else []
    if rewards is not None and sections.get("eval") is not None:
        problems += _reward_problems(sections["eval"], parts, origin)
    if problems:
        raise ConfigError(problems)
    name = base_from(caller, str(base)) if base is not None else None
    is_trusted = trust_code == "true"
    return EvaluationConfig(
        entry_point=entry_point,
        model=values["model"],
        base_model=name,
        trust_code=is_trusted,
        rewards=parts,
        **sections,
    )


def _reward_problems(settings: EvalSettings, rewards: list[RewardSettings], origin: Origins) -> list[str]:
    """Return which metrics do not fit to the rewards: those of rewards that are missing, and that of pairs beside rewards."""
    metrics = [] if settings.metrics == "auto" else list(settings.metrics)
    where = origin.of(("eval", "metrics"))
    problems = [f"{where}: {fault}" for fault in reward_metric_faults(metrics, rewards)]
    if rewards and PAIR_METRIC in metrics:
        problems.append(
            f"{where}: eval.metrics: {PAIR_METRIC} compares the answers of pairs, and rewards score answers to prompts; "
            "fix: remove it, or options.rewards"
        )
    return problems


def resolve_evaluation_paths(config: EvaluationConfig, project: Path) -> EvaluationConfig:
    """Return the same configuration with every path absolute, as ``resolve_paths`` does."""
    sections = resolve_section_paths({"data": config.data, "eval": config.eval}, project)
    parts = absolute_rewards({FIELD: [part.model_dump(exclude_unset=True) for part in config.rewards]}, project)
    return config.model_copy(update={**sections, "rewards": ScoringOptions(**parts).rewards})
