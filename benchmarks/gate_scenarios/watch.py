"""The watch of a champion: failed answers after many good ones, outages of the engine, and drift."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import numpy as np

from gate_scenarios.scenario import Rng, Trial, error, outside, power
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.unpaired import Sample
from mlflow_finetune_plugin.gate.watch_evidence import Fall, NotMeasured
from mlflow_finetune_plugin.gate.watch_findings import judge_errors, judge_fall
from mlflow_finetune_plugin.gate.watch_policy import DriftPolicy, ErrorsPolicy

RESTARTS = importlib.util.find_spec("mlflow_finetune_plugin.gate.statistics.detectors.failures") is not None
"""The first preview tests all answers since the start, and counts each answer that an outage loses."""
POLICY, DRIFT = ErrorsPolicy(), DriftPolicy()
ALPHA, EACH = POLICY.alpha, 100
NO_PREVIOUS = NotMeasured("the previous version has no traffic")


class Watched:
    """The champion's answers, as the watch of this checkout tests them."""

    def __init__(self) -> None:
        self.answers = Answered(0, 0)
        if RESTARTS:
            from mlflow_finetune_plugin.gate.statistics.detectors.failures import FailureDetector

            self.answers = FailureDetector(POLICY.at_most)

    def add(self, batch: Answered) -> bool:
        """Return whether the check after this batch rolls back."""
        self.answers = self.answers.after(batch) if RESTARTS else self.answers + batch
        return judge_errors(POLICY, self.answers, NO_PREVIOUS).outcome == "roll back"


def drawn(rng: Rng, answers: int, rate: float) -> Answered:
    return Answered(answers, int(rng.binomial(answers, rate)))


def at_the_bound(checks: int) -> Trial:
    """A champion that fails as often as allowed."""

    def trial(rng: Rng) -> bool:
        watched = Watched()
        return any(watched.add(drawn(rng, EACH, POLICY.at_most)) for _ in range(checks))

    return trial


def noticed(good: int, rate: float, within: int) -> Trial:
    """Good answers, of which 0.2 % fail, in batches of 5,000; then the rate rises. Whether it is noticed within so many answers."""

    def trial(rng: Rng) -> bool:
        watched = Watched()
        for _ in range(good // 5000):
            if watched.add(drawn(rng, 5000, 0.002)):
                return False
        return any(watched.add(drawn(rng, EACH, rate)) for _ in range(within // EACH))

    return trial


def outage(ends: int, good_between: int) -> Trial:
    """10,000 good answers; then an engine loses 300 answers in so many ends, each with good answers in its check; then 1,000 good ones."""

    def trial(rng: Rng) -> bool:
        watched = Watched()
        batches = [drawn(rng, 1000, 0.002) for _ in range(10)]
        batches += [lost(process, 300 // ends) + drawn(rng, good_between, 0.002) for process in range(ends)]
        batches.append(drawn(rng, 1000, 0.002))
        return any(watched.add(batch) for batch in batches)

    return trial


def lost(process: int, answers: int) -> Answered:
    """Return how a router counts answers that were lost with one process of an engine."""
    if not RESTARTS:
        return Answered(answers, answers)
    from mlflow_finetune_plugin.serving.router.answering.version_faults import VersionFaults

    counted: list[str] = []
    faults = VersionFaults(lambda model, version, draw, key: counted.append(version))
    for _ in range(answers):
        faults.report_lost(SimpleNamespace(generation=process), "bot", "2")  # type: ignore[arg-type]
    return Answered(len(counted), len(counted))


def drifted(rng: Rng) -> bool:
    """A champion whose metric and whose nats per token are worse on new rows by exactly what is allowed."""
    held_out, new = (tuple((rng.random(300) < share).astype(float)) for share in (0.8, 0.8 - DRIFT.at_most))
    nats, new_nats = (tuple(rng.normal(mean, 0.3, 300)) for mean in (1, 1 + DRIFT.nats_at_most))
    falls = (
        (Fall("exact_match", Sample(held_out), Sample(new), 1), DRIFT.at_most),
        (Fall("nats", Sample(nats), Sample(new_nats), 1, higher_is_better=False), DRIFT.nats_at_most),
    )
    return any(judge_fall(DRIFT, fall, "drift", bound).outcome == "re-tune" for fall, bound in falls)


SCENARIOS = [
    error("watch: 1 % fail, 1 % allowed, 100 checks", at_the_bound(100), ALPHA, "1.2", share=0.5),
    error("watch: an engine ends once, with 300 answers, after 10,000 good ones", outage(1, 0), ALPHA, "yes"),
    error("watch: it ends 3 times, each with 100 lost and 100 good answers", outage(3, 100), ALPHA),
    outside("watch: it ends 3 times, each with 100 lost answers and no good ones", outage(3, 0)),
    error("watch: drift that is allowed, in metric and nats, one set of rows", drifted, DRIFT.alpha * 6 / np.pi**2),
    *[
        power(
            f"watch: 5 % fail after {good:,} good answers, noticed within 1,000", noticed(good, 0.05, 1000), share=0.5
        )
        for good in (0, 50_000, 200_000)
    ],
]
