"""The verbs: an entry point is a named pair of an adaptation and an objective, or an operation on what was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import ConfigError, unknown


@dataclass(frozen=True)
class EntryPoint:
    """What ``-e NAME`` stands for; ``-P adaptation=`` and ``-P objective=`` change the pair."""

    name: str
    adaptation: str
    objective: str
    summary: str


@dataclass(frozen=True)
class Operation:
    """What ``-e NAME`` stands for when nothing is trained; ``parameters`` are the ``-P`` that only it has."""

    name: str
    summary: str
    parameters: dict[str, str]


DEFAULT_ENTRY_POINT = "lora"

ENTRY_POINTS: dict[str, EntryPoint] = {
    point.name: point
    for point in (
        EntryPoint("lora", "lora", "sft", "low-rank adapters on the base's linear layers, from answers to imitate"),
        EntryPoint("qlora", "qlora", "sft", "the same on a base held in 4 bits"),
        EntryPoint(
            "adapters", "bottleneck", "sft", "small networks behind attention and feed-forward; or -P adaptation=ia3"
        ),
        EntryPoint("multitask", "lora", "sft", "one adapter from a mixture of tasks"),
    )
}

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            "evaluate",
            "the proof again, of a registered adapter on other held-out rows",
            {"model": "models:/NAME/VERSION or models:/NAME@ALIAS"},
        ),
        Operation(
            "promote",
            "the gate: judges a registered version by its policy, and moves the alias when the verdict says so",
            {
                "model": "registered model; default: the recipe's register.name",
                "version": "to judge; default: the challenger",
                "to": "alias to move; default: champion",
                "accept_new_policy": "true judges by a recipe's policy that was changed after the training",
                "endpoint": "router (http://.../v1) to time, and to ask where the policy says serving",
                "canary": "percentages, e.g. 5,25,50: try it on a growing share of the requests before the move",
                "step": "of the canary, at least, e.g. 10m (default)",
                "least_answers": "of the canary in each step; default: 100",
            },
        ),
        Operation(
            "watch",
            "is the champion still the one to have: keep, re-tune or roll back, with the evidence",
            {
                "model": "registered model; default: the recipe's register.name",
                "data": "new rows with answers, for another proof and to see whether they have drifted",
                "act": "true does roll back, when that is the verdict",
            },
        ),
    )
}


def entry_point(name: str, *, beside: Sequence[str] = ()) -> EntryPoint | Operation:
    """Return the pair or the operation behind a name.

    Args:
        name: The name after ``-e``.
        beside: Further names to suggest: the entry points of the project's own MLproject.

    Raises:
        ConfigError: There is no such entry point.
    """
    if name in ENTRY_POINTS:
        return ENTRY_POINTS[name]
    if name in OPERATIONS:
        return OPERATIONS[name]
    known = [*ENTRY_POINTS, *OPERATIONS]
    choices = [*known, *(other for other in beside if other not in known)]
    raise ConfigError([unknown("entry point", name, choices)])
