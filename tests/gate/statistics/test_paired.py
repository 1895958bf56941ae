import math

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.intervals import paired_binary_interval
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.paired import (
    PairedRows,
    clustered_standard_error,
    mcnemar_p,
    mean_interval,
    non_inferiority,
    paired_interval,
    rows_still_needed,
)


def hits(both, champion_only, candidate_only, neither):
    champion = [1.0] * (both + champion_only) + [0.0] * (candidate_only + neither)
    candidate = [1.0] * both + [0.0] * champion_only + [1.0] * candidate_only + [0.0] * neither
    return rows_of(candidate, champion)


def rows_of(candidate, champion, clusters=None):
    return PairedRows(tuple(f"row {i}" for i in range(len(candidate))), tuple(candidate), tuple(champion), clusters)


# Fagerland, Lydersen, Laake 2013, BMC Medical Research Methodology 13, 91: Bentur et al. 2009 and Cavo et al. 2012
@pytest.mark.parametrize(("table", "p"), [((1, 7, 1, 12), 0.0703), ((59, 16, 6, 80), 0.0525)])
def test_mcnemar_equals_published_examples(table, p):
    assert mcnemar_p(hits(*table)) == pytest.approx(p, abs=5e-5)


def test_mcnemar_without_a_differing_row_knows_nothing():
    assert mcnemar_p(hits(5, 0, 0, 5)) == 1.0


def test_mcnemar_refuses_shares():
    with pytest.raises(GateError, match="one 0 or 1 per row"):
        mcnemar_p(rows_of([0.5, 1.0], [0.0, 1.0]))


def test_hits_get_tangos_published_interval_and_the_candidates_sign():
    table = hits(1, 7, 1, 12)  # Fagerland, Lydersen, Laake 2014, Statistics in Medicine 33
    score = paired_binary_interval(table.champion, table.candidate)
    assert (score.value, score.low, score.high) == pytest.approx((-0.286, -0.517, -0.026), abs=5e-4)
    interval = paired_interval(table)
    assert interval.value == score.value
    assert interval.low <= score.low
    assert interval.high == 0.0, "the exact test of McNemar does not exclude 0: p is .0703"
    assert interval.method == "Tango 1998 score and half-samples of rows"
    many = hits(10, 70, 10, 120)
    tango = paired_binary_interval(many.champion, many.candidate)
    assert paired_interval(many).high == pytest.approx(tango.high, abs=2e-3), (
        "the exact test is no wider with many rows"
    )


def test_hits_in_clusters_get_the_interval_of_clusters():
    rng = np.random.default_rng(0)
    shift = np.repeat(rng.random(40) < 0.5, 10)  # whole documents on which only the candidate is right
    alone = paired_interval(rows_of(shift.astype(float), np.zeros(400)))
    clustered = paired_interval(rows_of(shift.astype(float), np.zeros(400), tuple(np.repeat(np.arange(40), 10))))
    assert clustered.method == "Tango 1998 score and half-samples of 40 clusters"
    assert clustered.value == alone.value
    assert 2.5 < (clustered.high - clustered.low) / (alone.high - alone.low) < 4  # sqrt(10) = 3.2


def test_standard_error_of_singletons_is_students_and_of_copies_that_of_the_originals():
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    plain = np.std(values, ddof=1) / math.sqrt(5)
    assert clustered_standard_error(values) == pytest.approx(plain)
    assert clustered_standard_error(values, list("abcde")) == pytest.approx(plain)
    assert clustered_standard_error(values * 3, list("abcde") * 3) == pytest.approx(plain)


def test_standard_error_by_hand():
    # deviations -1, -1, 1, 1 in clusters (a, a), (b, b): sums -2 and 2; sqrt(4 + 4) / 4 * sqrt(2 / 1) = 1
    assert clustered_standard_error([0, 0, 2, 2], list("aabb")) == pytest.approx(1.0)
    # each cluster holds both deviations: they cancel
    assert clustered_standard_error([0, 2, 0, 2], list("aabb")) == 0.0
    assert clustered_standard_error([0, 2], list("aa")) == math.inf


def test_bootstrap_t_of_normal_rows_agrees_with_students_t():
    values = np.random.default_rng(1).normal(0.3, 1, 40)
    interval = mean_interval(values, n_resamples=20_000)
    reach = 2.0227 * values.std(ddof=1) / math.sqrt(40)  # t with 39 degrees of freedom
    assert (interval.value, interval.low, interval.high) == pytest.approx(
        (values.mean(), values.mean() - reach, values.mean() + reach), abs=0.04
    )


def test_bootstrap_t_leans_to_the_long_tail():
    values = np.random.default_rng(2).lognormal(0, 1.2, 60)
    interval = mean_interval(values)
    assert interval.high - interval.value > 1.3 * (interval.value - interval.low)


def test_bootstrap_t_covers_skewed_clusters_on_both_sides():
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(60), 5)
    missed_below = missed_above = 0
    for sample in range(600):
        values = np.repeat(rng.gamma(1.0, size=60), 5) + rng.normal(0, 0.5, 300)  # true mean 1
        interval = mean_interval(values, clusters=clusters.tolist(), seed=sample, n_resamples=800)
        missed_below += interval.high < 1
        missed_above += interval.low > 1
    assert 0.92 <= 1 - (missed_below + missed_above) / 600 <= 0.975
    assert max(missed_below, missed_above) / 600 < 0.05


def test_weights_make_a_ratio_of_sums():
    interval = mean_interval([0.2, 0.0, 0.1], weights=[10, 30, 60])
    assert interval.value == pytest.approx(0.08)
    doubled = mean_interval([0.2, 0.0, 0.1], weights=[20, 60, 120])
    assert (doubled.low, doubled.high) == pytest.approx((interval.low, interval.high))


def test_a_weighted_row_is_a_cluster_of_equal_rows():
    values, weights = np.random.default_rng(7).random(25), np.arange(25) % 4 + 1
    weighed = mean_interval(values, weights=weights.astype(float))
    repeated = mean_interval(np.repeat(values, weights), clusters=np.repeat(np.arange(25), weights).tolist())
    assert (weighed.value, weighed.low, weighed.high) == pytest.approx((repeated.value, repeated.low, repeated.high))


def test_candidate_and_champion_change_places():
    rng = np.random.default_rng(4)
    a, b = rng.random(50), rng.random(50)
    there, back = paired_interval(rows_of(a, b)), paired_interval(rows_of(b, a))
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=0.01)


@pytest.mark.parametrize(
    ("values", "clusters", "reason"),
    [
        ([0.4], None, "one row"),
        ([0.4, 0.1], ["a", "a"], "one cluster"),
        ([0.1, 0.1, 0.1], None, "all rows differ alike"),
        ([0.0, 0.0, 0.0], None, "all rows differ alike"),
        ([0.3 - 0.2, 1.1 - 1.0, 0.1], None, "all rows differ alike"),
    ],
)
def test_no_spread_is_no_certainty(values, clusters, reason):
    interval = mean_interval(values, clusters=clusters)
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert reason in interval.method


def test_clusters_that_differ_alike_are_no_certainty():
    interval = mean_interval([0.0, 2.0, 0.0, 2.0], clusters=list("aabb"))
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert "all 2 clusters differ alike" in interval.method


def test_a_large_mean_does_not_drown_a_small_spread():
    noise = np.random.default_rng(6).normal(0, 1e-6, 200)
    near, far = mean_interval(noise), mean_interval(noise + 1000)
    assert (far.low - 1000, far.high - 1000) == pytest.approx((near.low, near.high), abs=1e-9)


def test_two_gained_rows_do_not_exclude_zero_with_clusters_or_without():
    """Version 0.1 promoted on them as soon as two rows shared a question: the exact one-sided p-value is 1/4."""
    clusters = (*range(199), 198)
    for few in (rows_of([1.0] * 2 + [0.0] * 198, [0.0] * 200, clusters), hits(0, 0, 2, 198)):
        assert paired_interval(few).low <= 0
    assert mean_interval([0.5, 0.4] + [0.0] * 198).low <= 0
    assert mean_interval([0.5, 0.4] + [0.0] * 198, clusters=clusters).low <= 0


def test_a_gain_on_nearly_all_rows_is_shown_with_a_repeated_question():
    """Version 0.1 held: resamples without spread made the interval of the clusters unbounded."""
    interval = paired_interval(rows_of([1.0] * 197 + [0.0] * 3, [0.0] * 200, (*range(199), 198)))
    assert (interval.low, interval.high) == pytest.approx((0.948, 1.0), abs=0.005)


@pytest.mark.simulation
@pytest.mark.parametrize("differing", [1, 2, 3, 4, 8])
def test_equal_models_that_differ_on_few_rows_pass_in_at_most_alpha(differing):
    rng = np.random.default_rng(differing)
    passed = 0
    for _ in range(400):
        differs, wins = rng.random(200) < differing / 200, rng.random(200) < 0.5
        values = np.where(wins, 1.0, -1.0) * differs * rng.uniform(0.2, 1, 200)
        passed += mean_interval(values, n_resamples=1000).low > 0
    assert passed / 400 <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / 400)


def test_two_rows_that_differ_bound_nothing_above():
    interval = mean_interval([0.3, 0.5] + [0.0] * 298)
    assert interval.high == math.inf
    assert interval.low > -0.01


def test_same_seed_same_interval():
    values = np.random.default_rng(5).random(30)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


@pytest.mark.parametrize(
    ("candidate", "champion", "message"),
    [
        ([], [], "no rows to compare"),
        ([1.0, math.nan], [1.0, 1.0], "1 of 2 values of candidate are not finite, the first in row 'row 1'"),
        ([1.0, 1.0], [-math.inf, 1.0], "values of champion are not finite, the first in row 'row 0'"),
        ([1.0, 1.0], [1.0], "2 row ids but 1 values of champion"),
    ],
)
def test_broken_rows_are_refused(candidate, champion, message):
    with pytest.raises(ValueError, match=message):
        rows_of(candidate, champion)


def test_repeated_rows_and_lone_clusters_are_refused():
    with pytest.raises(GateError, match="row 'a' occurs twice"):
        PairedRows(("b", "a", "a"), (1.0,) * 3, (1.0,) * 3)
    with pytest.raises(GateError, match="2 row ids but 1 values of clusters"):
        PairedRows(("a", "b"), (1.0,) * 2, (1.0,) * 2, ("x",))
    with pytest.raises(GateError, match="weight is not positive"):
        mean_interval([0.1, 0.2], weights=[1, 0])


def test_join_pairs_by_id_and_refuses_other_rows():
    rows = PairedRows.join({"a": 1.0, "b": 0.0}, {"b": 0.5, "a": 0.25}, {"b": "x", "a": "y"})
    assert rows.differences.tolist() == [0.75, -0.5]
    assert rows.clusters == ("y", "x")
    with pytest.raises(GateError, match=r"2 rows are not on both sides \(candidate: 2, champion: 2\), the first: b, c"):
        PairedRows.join({"a": 1.0, "b": 0.0}, {"a": 0.5, "c": 0.25})
    with pytest.raises(GateError, match="clusters: 1"):
        PairedRows.join({"a": 1.0, "b": 0.0}, {"a": 0.5, "b": 0.25}, {"a": "x"})


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(-0.1, 0.049, "shown"), (-0.1, 0.05, "open"), (0.05, 0.2, "open"), (0.051, 0.2, "refuted")],
)
def test_non_inferiority_compares_the_interval_with_the_margin(low, high, answer):
    assert non_inferiority(Interval(0.0, low, high, ""), 0.05) == answer


def test_margin_must_be_a_number():
    with pytest.raises(GateError, match="the margin is nan"):
        non_inferiority(Interval(0.0, 0.0, 0.0, ""), math.nan)


@pytest.mark.parametrize(
    ("low", "high", "bound", "needed"),
    [
        (-0.1, 0.2, 0.0, 300),  # the lower end is twice as far as it may be: four times the rows
        (-0.1, 0.9, 0.0, 300),  # the other end has no say
        (-0.9, 0.3, 0.2, 300),  # below the bound the upper end counts
        (0.0, 0.2, 0.0, 1),
        (-math.inf, 0.2, 0.0, None),
        (-0.1, 0.2, 0.1, None),
        (-0.1, 0.2, 0.0999, None),  # over a million rows
    ],
)
def test_rows_still_needed_grow_with_the_square(low, high, bound, needed):
    assert rows_still_needed(Interval(0.1, low, high, ""), 100, bound) == needed
