"""Latency, by the trials of ``latency_audit.py``. The first preview compares two points; its figures are the audit's."""

from __future__ import annotations

import importlib.util

from gate_scenarios.scenario import Rng, Scenario, Trial, error, power

HAS_TESTS = importlib.util.find_spec("mlflow_finetune_plugin.gate.statistics.latency_quantile") is not None


def decides(trial) -> Trial:
    def decided(rng: Rng) -> bool:
        return trial(rng) is not None

    return decided


def scenarios() -> list[Scenario]:
    from latency_audit import ALPHA, ERRORS, POWERS

    powers = [
        each for each in POWERS if not each.name.startswith("gate")
    ]  # slow ones, which latency_audit.py counts in answers

    return [
        *[
            error(
                f"latency, {each.name}",
                decides(each.trial),
                ALPHA,
                each.before.strip("-"),
                share=0.5,
            )
            for each in ERRORS
        ],
        *[power(f"latency, {each.name}", decides(each.trial), share=0.5) for each in powers],
    ]


SCENARIOS = scenarios() if HAS_TESTS else []
