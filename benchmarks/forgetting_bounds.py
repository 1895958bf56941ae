"""Upper bounds of a mean harm that were considered for forgetting: how often each errs, and how often it shows less harm.

    python benchmarks/forgetting_bounds.py [--sims 1000]

"Error" is how often a bound is at or below a true mean of 0.1, nominally 2.5 %; "power" how often it is below 0.1 where the mean is
0.05 (normal, exponential) or 0.03 (lognormal). All bounds but Chen's hold the bootstrap-t and half-samples of the gate. A block of samples shares its
resamples, which makes many samples cheap. The gate's own functions are simulated by ``gate_audit.py --only forgetting``.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from scipy import stats

ALPHA, BOUND, BLOCK, RESAMPLES = 0.025, 0.1, 500, 2000
Array = np.ndarray
LAWS = {
    "normal": lambda rng, mean, shape: rng.normal(mean, 0.1, shape),
    "t, 3 degrees": lambda rng, mean, shape: mean + 0.06 * rng.standard_t(3, shape),
    "exponential": lambda rng, mean, shape: rng.exponential(mean, shape),
    "gamma .5": lambda rng, mean, shape: rng.gamma(0.5, 2 * mean, shape),
    "lognormal 1.2": lambda rng, mean, shape: mean * rng.lognormal(-0.72, 1.2, shape),
}
CASES = [(law, BOUND) for law in LAWS] + [("normal", 0.05), ("exponential", 0.05), ("lognormal 1.2", 0.03)]


def bootstrap_t(x: Array, tail: float, rng: np.random.Generator) -> Array:
    """Return the upper end, (samples,), of each sample of ``x`` (samples, texts)."""
    texts, mean = x.shape[1], x.mean(axis=1)
    drawn = rng.multinomial(texts, np.full(texts, 1 / texts), size=RESAMPLES) / texts
    centred = x - mean[:, None]
    moved, squares = drawn @ centred.T, drawn @ (centred**2).T
    t = moved / np.sqrt(np.maximum(squares - moved**2, 1e-18) / (texts - 1))
    return mean - np.quantile(t, tail, axis=0, method="lower") * x.std(axis=1, ddof=1) / math.sqrt(texts)


def half_samples(x: Array, rng: np.random.Generator) -> Array:
    chosen = (rng.random((2 * RESAMPLES, x.shape[1])) < 0.5).astype(float)
    return np.quantile(chosen @ x.T / np.maximum(chosen.sum(axis=1), 1)[:, None], 1 - ALPHA, axis=0)


def chen(x: Array) -> Array:
    """Return the bound of the skewness-corrected t test of Chen 1995, JASA 90, 767-772."""
    texts, mean, spread = x.shape[1], x.mean(axis=1), x.std(axis=1, ddof=1)
    t = stats.t.isf(ALPHA, texts - 1)
    a = ((x - mean[:, None]) ** 3).mean(axis=1) / spread**3 / (6 * math.sqrt(texts))
    return mean + spread / math.sqrt(texts) * (t + a * (1 + 2 * t**2) + 4 * a**2 * (t + 2 * t**3))


def bounds(x: Array, rng: np.random.Generator) -> dict[str, Array]:
    """Return each bound of each sample, (samples,)."""
    texts, mean, ordered = x.shape[1], x.mean(axis=1), np.sort(x, axis=1)
    worst, middle, tenth = ordered[:, -1], np.median(x, axis=1), max(texts // 10, 2)
    above, below = ordered[:, -tenth:].mean(axis=1) - middle, middle - ordered[:, :tenth].mean(axis=1)
    asymmetry = np.maximum(above - below, 0)
    plain = np.maximum(bootstrap_t(x, ALPHA, rng), half_samples(x, rng))
    weights = rng.standard_exponential((2 * RESAMPLES, texts + 1))
    weights /= weights.sum(axis=1, keepdims=True)

    def one_more(text: Array) -> Array:
        means = weights[:, :texts] @ x.T + weights[:, texts:] * text
        return np.maximum(plain, np.quantile(means, 1 - ALPHA, axis=0))

    return {
        "bootstrap-t and half-samples": plain,
        "the same, bootstrap-t at a fifth of alpha": np.maximum(plain, bootstrap_t(x, ALPHA / 5, rng)),
        "Chen's corrected t": chen(x),
        "one more text, as bad as the worst": one_more(worst),
        "one more text, twice as far from the mean as the worst": one_more(mean + 2 * (worst - mean)),
        "one more text, worse than the worst by 12 / sqrt(texts) times the asymmetry": one_more(
            worst + 12 / math.sqrt(texts) * asymmetry
        ),
        "one more text, 3 times the asymmetry above the mean": one_more(mean + 3 * asymmetry),
        "one more text, 3 + 30 / texts times the asymmetry above the mean": one_more(
            mean + (3 + 30 / texts) * asymmetry
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=1000)
    blocks = max(1, parser.parse_args().sims // BLOCK)
    heads = [f"{'error' if mean == BOUND else 'power'}: {law}" for law, mean in CASES]
    for texts in (20, 40, 200):
        print(f"\n| {texts} texts | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
        below: dict[str, list[float]] = {}
        for number, (law, mean) in enumerate(CASES):
            rng, counts = np.random.default_rng([2026, texts, number]), dict[str, int]()
            for _ in range(blocks):
                for name, ends in bounds(LAWS[law](rng, mean, (BLOCK, texts)), rng).items():
                    counts[name] = counts.get(name, 0) + int((ends <= BOUND).sum())
            for name, count in counts.items():
                below.setdefault(name, []).append(100 * count / blocks / BLOCK)
        for name, row in below.items():
            print(f"| {name} | {' | '.join(f'{share:.1f}' for share in row)} |", flush=True)


if __name__ == "__main__":
    main()
