"""The entry points: named pairs of an adaptation and an objective, and operations on registered models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import ConfigError, unknown


@dataclass(frozen=True)
class EntryPoint:
    """An entry point that trains. ``-P adaptation=`` and ``-P objective=`` replace its pair."""

    name: str
    adaptation: str
    objective: str
    summary: str


@dataclass(frozen=True)
class Operation:
    """An entry point that trains nothing. ``parameters`` describes the ``-P`` keys that only it has."""

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
        EntryPoint(
            "full", "full", "sft", "the base's own weights: all of them, or some layers, the embeddings or the norms"
        ),
        EntryPoint(
            "prompt", "prompt", "sft", "virtual tokens in front of every prompt; or -P adaptation=prefix, or ptuning"
        ),
        EntryPoint(
            "vision", "lora", "sft", "from pictures with questions and answers, on a base that reads pictures; or qlora"
        ),
        EntryPoint("multitask", "lora", "sft", "one adapter from a mixture of tasks"),
        EntryPoint("dpo", "lora", "dpo", "preference optimisation: from pairs of a better and a worse answer"),
        EntryPoint("orpo", "lora", "orpo", "the same without a reference model, from the base in one run"),
        EntryPoint("kto", "lora", "kto", "preference optimisation from answers that are rated good or bad"),
        EntryPoint(
            "reward", "lora", "reward", "a reward model from pairs: it scores conversations and writes no answers"
        ),
        EntryPoint("grpo", "lora", "grpo", "reinforcement learning: sampled completions of each prompt, and a reward"),
        EntryPoint("rloo", "lora", "rloo", "the same with a leave-one-out baseline; for reward models"),
    )
}

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        Operation(
            "evaluate",
            "prove a registered adapter again, on other held-out rows",
            {
                "model": "models:/NAME/VERSION or models:/NAME@ALIAS",
                "trust_code": "true runs Python code in a version that this package does not know",
            },
        ),
        Operation(
            "promote",
            "judge a registered version by its policy, and move the alias if the verdict is promote",
            {
                "model": "registered model; default: the recipe's register.name",
                "version": "version to judge; default: the challenger",
                "to": "alias to move; default: champion",
                "accept_new_policy": "accept a recipe's policy that was changed after the training",
                "endpoint": "router (http://.../v1) whose latency counts, and that answers where the policy sets through: serving",
                "canary": "percentages, e.g. 5,25,50: serve a growing share of requests before the move",
                "step": "shortest duration of a canary step; default: 10m",
                "least_answers": "fewest canary answers in a step; default: 100",
                "failures_at_most": "share of a canary's answers that may fail; default: 0.05",
                "trust_code": "true runs Python code in a version that this package does not know",
            },
        ),
        Operation(
            "watch",
            "check whether the champion is still the best version: keep, re-tune or roll back, with the evidence",
            {
                "model": "registered model; default: the recipe's register.name",
                "data": "new rows with answers, for another proof and for the test of drift",
                "act": "roll back if that is the verdict",
                "trust_code": "true runs Python code in a version that this package does not know",
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
