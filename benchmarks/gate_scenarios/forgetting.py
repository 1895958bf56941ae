"""Forgetting on general texts, where the mean harm equals the bound, and where it is smaller."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from gate_scenarios.scenario import Rng, Trial, error, power
from mlflow_finetune_plugin.evaluation.intervals import mean_interval
from mlflow_finetune_plugin.gate.criteria import judge_forgetting
from mlflow_finetune_plugin.gate.evidence import Forgetting, Gain
from mlflow_finetune_plugin.gate.policy import ForgettingPolicy

Harm = Callable[[Rng, int], np.ndarray]
"""The nats per token that each of so many texts loses."""

READS_TEXTS = "number" in inspect.signature(Gain).parameters
"""The first preview reads the percentile interval of the run."""
BOUND, ALPHA = 0.1, 0.025
LAWS: dict[str, Callable[[float], Harm]] = {
    "normal": lambda mean: lambda rng, n: rng.normal(mean, 0.1, n),
    "exponential": lambda mean: lambda rng, n: rng.exponential(mean, n),
    "gamma with a shape of 0.5": lambda mean: lambda rng, n: rng.gamma(0.5, 2 * mean, n),
    "lognormal with a sigma of 1.2": lambda mean: lambda rng, n: mean * rng.lognormal(-0.72, 1.2, n),
}


def passes(texts: int, harm: Harm) -> Trial:
    """Judge forgetting on texts of 500 tokens."""

    def trial(rng: Rng) -> bool:
        nats, tokens = harm(rng, texts), np.full(texts, 500.0)
        if READS_TEXTS:
            measured = Forgetting(tuple(map(str, range(texts))), tuple(nats.tolist()), tuple(tokens.tolist()))
        else:
            measured = mean_interval(np.stack([0 * nats, tokens], 1), np.stack([500 * nats, tokens], 1))
        return judge_forgetting(ForgettingPolicy(at_most=BOUND), measured).outcome == "pass"

    return trial


AUDIT = {("gamma with a shape of 0.5", 40): "4.2", ("lognormal with a sigma of 1.2", 40): "12.7"}
SCENARIOS = [
    *[
        error(f"forgetting: {texts} texts, {name}", passes(texts, law(BOUND)), ALPHA, AUDIT.get((name, texts), ""))
        for texts in (20, 40, 100)
        for name, law in LAWS.items()
    ],
    *[
        power(f"forgetting: {texts} texts, {name}, {share:g} of the bound", passes(texts, LAWS[name](share * BOUND)))
        for texts in (20, 40, 100)
        for name, share in (("normal", 0.5), ("exponential", 0.5), ("lognormal with a sigma of 1.2", 0.3))
    ],
]
