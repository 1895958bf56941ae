"""A scenario: a trial that is repeated, and what share of the trials may end so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Rng = np.random.Generator
Trial = Callable[[Rng], bool]
"""Returns whether the gate decides, for example promotes."""


@dataclass(frozen=True)
class Scenario:
    """A trial and what is known of it.

    Args:
        name: Starts with the part of the gate.
        trial: The trial.
        kind: ``error``: a decision is wrong. ``power``: it is right. ``outside``: it is wrong, in a case that the test does not promise.
        nominal: The share of wrong decisions that is promised; None where none is.
        audit: The audit's figure for the first preview, in percent; empty where it has none.
        share: The share of the simulations that a slow trial gets.
    """

    name: str
    trial: Trial
    kind: Literal["error", "power", "outside"]
    nominal: float | None = None
    audit: str = ""
    share: float = 1.0


def error(name: str, trial: Trial, nominal: float, audit: str = "", **more: float) -> Scenario:
    return Scenario(name, trial, "error", nominal, audit, **more)


def power(name: str, trial: Trial, **more: float) -> Scenario:
    return Scenario(name, trial, "power", **more)


def outside(name: str, trial: Trial, audit: str = "", **more: float) -> Scenario:
    return Scenario(name, trial, "outside", None, audit, **more)
