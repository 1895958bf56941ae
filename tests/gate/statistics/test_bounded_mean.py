"""A lower bound that allows for losses which no row shows."""

import numpy as np
import pytest

from mlflow_finetune_plugin.gate.statistics.bounded_mean import mean_lower_bound
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows, paired_interval


def bound(gains, tail=0.025, sizes=None, draws=40_000):
    weights = np.ones(len(gains)) if sizes is None else np.asarray(sizes, dtype=float)
    return mean_lower_bound(np.asarray(gains) * weights, weights, lowest=-1, tail=tail, seed=0, n_draws=draws)


@pytest.mark.parametrize(("rows", "tail"), [(20, 0.025), (183, 0.025), (50, 0.001)])
def test_of_equal_gains_it_is_the_closed_form(rows, tail):
    unseen = 1 - tail ** (1 / rows)  # the added row's weight is Beta(1, rows)
    assert bound([0.02] * rows, tail) == pytest.approx(0.02 - 1.02 * unseen, abs=0.02 * 1.02 * unseen + 1e-4)


def test_it_never_is_above_the_mean_and_rises_with_the_rows():
    gains = np.random.default_rng(0).normal(0.1, 0.2, 400)
    few, many = bound(gains[:40]), bound(gains)
    assert few < many < gains.mean()
    # with many rows it is near the usual bound
    assert many == pytest.approx(gains.mean() - 1.96 * gains.std() / 20, abs=0.006)


def test_a_tail_that_no_draw_shows_bounds_nothing():
    assert bound([0.5] * 400, tail=1e-4) > 0.4
    assert bound([0.5] * 400, tail=1e-5) == -1


def test_a_cluster_counts_as_one_and_the_added_one_is_as_large_as_the_largest():
    assert bound([0.02] * 20, sizes=[10] * 20) == pytest.approx(bound([0.02] * 20))
    assert bound([0.02] * 20, sizes=[1] * 19 + [10]) < bound([0.02] * 20)


def test_rows_that_hide_a_rare_disaster_show_no_gain():
    gains = 0.02 + np.random.default_rng(0).normal(0, 0.005, 50)
    rows = PairedRows(tuple(map(str, range(50))), tuple(gains + 0.5), (0.5,) * 50)
    assert paired_interval(rows).low > 0
    assert paired_interval(rows, largest_difference=1).low < 0
    turned = PairedRows(rows.row_ids, rows.champion, rows.candidate)
    assert paired_interval(turned).high < 0
    assert paired_interval(turned, largest_difference=1).high > 0


def test_binary_rows_keep_their_exact_interval():
    rows = PairedRows(tuple(map(str, range(50))), (1.0,) * 10 + (0.0,) * 40, (0.0,) * 50)
    assert paired_interval(rows, largest_difference=1) == paired_interval(rows)
