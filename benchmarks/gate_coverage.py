"""How often the gate's 95 % paired intervals hold the true mean difference; ``gate_errors.py`` prints it too.

    python benchmarks/gate_coverage.py

Samples are drawn from 100,000 rows (or clusters) as the whole population. A block of samples shares its resamples,
which changes no sample's interval in distribution and makes 10,000 samples cheap.
"""

from __future__ import annotations

import argparse

import numpy as np
from interval_coverage import text_population, token_f1_population

from mlflow_finetune_plugin.evaluation.intervals import expanded_levels, paired_binary_interval
from mlflow_finetune_plugin.gate.statistics.paired import (
    bootstrap_t_bounds,
    cluster_statistics,
    standard_errors,
    studentised_means,
)

SIZES = (30, 100, 300, 1000)
POPULATION = 100_000
BLOCK = 500
RESAMPLES = 1000

Sums = tuple[np.ndarray, np.ndarray]
"""Summed differences and weights of each row, or of each cluster."""


def f1_gains(rng: np.random.Generator) -> Sums:
    base, adapter = token_f1_population(rng)
    return adapter[:, 0] - base[:, 0], base[:, 1]


def forgetting(rng: np.random.Generator) -> Sums:
    base, adapter = text_population(rng)
    return adapter[:, 0] - base[:, 0], base[:, 1]


def skewed(rng: np.random.Generator) -> Sums:
    """A stress test: most rows lose a little, few gain much."""
    return rng.lognormal(0, 1, size=POPULATION) - 1, np.ones(POPULATION)


def skewed_clusters(rng: np.random.Generator) -> Sums:
    values = rng.gamma(1.0, size=(POPULATION, 1)) + rng.normal(0, 0.5, size=(POPULATION, 5))
    return values.sum(axis=1), np.full(POPULATION, 5.0)


def hit_clusters(rng: np.random.Generator) -> Sums:
    """Rows of 0 and 1: a cluster's rows are gained with a chance of its own, .3 in the mean, or lost with .1."""
    gained = rng.beta(0.6, 1.4, size=(POPULATION, 1))
    u = rng.random((POPULATION, 5))
    values = np.where(u < gained, 1.0, np.where(u > 0.9 + 0.1 * gained, -1.0, 0.0))
    return values.sum(axis=1), np.full(POPULATION, 5.0)


def print_bootstrap_coverage(sims: int) -> None:
    print("| rows | n | bootstrap-t | above | below | expanded percentile | above | below |")
    print("|---|---|---|---|---|---|---|---|")
    cases = {
        "token F1": (f1_gains, 1),
        "forgetting, nats per token": (forgetting, 1),
        "skewed (lognormal)": (skewed, 1),
        "clusters of 5, skewed": (skewed_clusters, 5),
        "clusters of 5, rows of 0 and 1": (hit_clusters, 5),
    }
    for name, (make, size) in cases.items():
        x, w = make(np.random.default_rng(0))
        truth, table = x.sum() / w.sum(), cluster_statistics(x, w, None)
        for rows in SIZES:
            rng = np.random.default_rng([rows, 7])
            blocks = sims // BLOCK
            misses = sum(block_misses(table, truth, rows // size, rng) for _ in range(blocks)) / (blocks * BLOCK)
            shares = " | ".join(f"{1 - above - below:.1%} | {above:.1%} | {below:.1%}" for above, below in misses)
            print(f"| {name} | {rows} | {shares} |", flush=True)


def block_misses(table: np.ndarray, truth: float, units: int, rng: np.random.Generator) -> np.ndarray:
    """How many of a block's intervals lie [above, below] the truth, for bootstrap-t and expanded percentile, (2, 2)."""
    sample = table[rng.integers(len(table), size=(BLOCK, units))]  # (block, units, 5)
    drawn = rng.multinomial(units, np.full(units, 1 / units), size=RESAMPLES).astype(float)
    sums = np.tensordot(drawn, sample, axes=(1, 1))  # (resamples, block, 5)
    whole = sample.sum(axis=1)
    value = whole[:, 0] / whole[:, 1]
    t = studentised_means(sums, value, units)
    with np.errstate(invalid="ignore"):  # a sample without spread: nan lies on neither side, as an unbounded interval
        studentised = bootstrap_t_bounds(value, standard_errors(whole, units), t, 0.95)
    pairs = (
        studentised,
        np.quantile(sums[..., 0] / sums[..., 1], expanded_levels(units, 0.95), axis=0),
    )
    return np.array([[(low > truth).sum(), (high < truth).sum()] for low, high in pairs], dtype=float)


def print_binary_coverage(sims: int) -> None:
    print("| rows of 0 and 1: share gained, share lost | n | Tango | above | below |\n|---|---|---|---|---|")
    for gained, lost in ((0.45, 0.05), (0.1, 0.1), (0.27, 0.25), (0.05, 0.02)):
        for rows in SIZES:
            cells = np.random.default_rng(rows).multinomial(rows, [gained, lost, 1 - gained - lost], size=sims)[:, :2]
            tables, counts = np.unique(cells, axis=0, return_counts=True)
            shares = [
                paired_binary_interval([0] * g + [1] * b + [0] * (rows - g - b), [1] * g + [0] * (rows - g))
                for g, b in tables
            ]
            above = np.average([i.low > gained - lost for i in shares], weights=counts)
            below = np.average([i.high < gained - lost for i in shares], weights=counts)
            print(f"| {gained}, {lost} | {rows} | {1 - above - below:.1%} | {above:.1%} | {below:.1%} |", flush=True)


def print_coverage(sims: int) -> None:
    print("\n## How often the 95 % paired intervals hold the truth (above: the whole interval lies above it)\n")
    print_bootstrap_coverage(sims)
    print()
    print_binary_coverage(sims)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sims", type=int, default=10_000)
    print_coverage(parser.parse_args().sims)


if __name__ == "__main__":
    main()
