"""Latencies are counted to 2 %, added and subtracted, and anything that is not a count is refused."""

import math

import numpy as np
import pytest

from mlflow_finetune_plugin.store.latency_counts import EDGES_MS, LatencyCounts, bucket_of, edge_from


def test_every_latency_lies_between_the_edges_of_its_bucket():
    for ms in (0.0, 0.5, 1.0, 1.02, 1.03, 99.9, 1e6, *EDGES_MS[:400]):
        bucket = bucket_of(ms)
        assert EDGES_MS[bucket] <= ms < EDGES_MS[bucket + 1]
    assert bucket_of(1e12) == len(EDGES_MS) - 1
    assert EDGES_MS[edge_from(100.0) - 1] < 100.0 <= EDGES_MS[edge_from(100.0)]
    assert edge_from(EDGES_MS[7]) == 7
    assert edge_from(1e12) == len(EDGES_MS)


def test_slow_answers_and_quantiles_are_those_of_the_latencies():
    times = np.random.default_rng(0).lognormal(6, 1, 2000)
    counts = LatencyCounts.of(times)
    assert counts.total == 2000
    for edge in (0, edge_from(100.0), edge_from(2000.0), len(EDGES_MS)):
        least = EDGES_MS[edge] if edge < len(EDGES_MS) else math.inf
        assert counts.from_edge(edge) == sum(times >= least)
    assert counts.quantile_ms(0.95) == pytest.approx(np.quantile(times, 0.95, method="inverted_cdf"), rel=0.011)
    with pytest.raises(ValueError, match="no answers"):
        LatencyCounts().quantile_ms(0.95)


def test_counts_are_added_and_subtracted():
    first, second = LatencyCounts.of([5.0, 80.0, 80.0]), LatencyCounts.of([80.0, 900.0])
    both = first + second
    assert both == LatencyCounts.of([5.0, 80.0, 80.0, 80.0, 900.0])
    assert both - second == first
    assert (both.includes(first), first.includes(both), first.includes(second)) == (True, False, False)
    assert both - both == LatencyCounts()
    with pytest.raises(ValueError, match="from 0"):
        first - second


@pytest.mark.parametrize(
    ("first", "counts", "message"),
    [
        (0, (1, -1, 1), "whole numbers"),
        (0, (1.0,), "whole numbers"),
        (0, (True,), "whole numbers"),
        (-1, (1,), "whole numbers"),
        (790, (1,) * 11, "more than 800"),
        (0, (0, 1), "empty bucket"),
    ],
)
def test_what_are_not_counts_is_refused(first, counts, message):
    with pytest.raises(ValueError, match=message):
        LatencyCounts(first, counts)
