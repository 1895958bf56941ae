import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.proportions import binomial_p, exact_interval, wilson_interval

# Newcombe 1998, Statistics in Medicine 17, 857-872, table I
NEWCOMBE = [
    ((81, 263), (0.2553, 0.3662), (0.2527, 0.3676)),
    ((15, 148), (0.0624, 0.1605), (0.0578, 0.1617)),
    ((0, 20), (0.0, 0.1611), (0.0, 0.1684)),
    ((1, 29), (0.0061, 0.1718), (0.0009, 0.1776)),
]


@pytest.mark.parametrize(("counts", "wilson", "exact"), NEWCOMBE)
def test_intervals_equal_newcombes_table(counts, wilson, exact):
    for interval, expected in ((wilson_interval(*counts), wilson), (exact_interval(*counts), exact)):
        assert (interval.low, interval.high) == pytest.approx(expected, abs=5e-5)
        assert interval.value == counts[0] / counts[1]


def test_interval_of_all_is_the_mirror_of_none():
    none, every = wilson_interval(0, 20), wilson_interval(20, 20)
    assert (every.low, every.high) == pytest.approx((1 - none.high, 1 - none.low))


def test_fishers_lady_tasting_tea_with_a_coin():
    assert binomial_p(8, 8, 0.5, "greater") == 1 / 256
    assert binomial_p(8, 8, 0.5, "less") == 1.0
    assert binomial_p(8, 8) == 2 / 256


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes, trials):
    for function in (wilson_interval, exact_interval, binomial_p):
        with pytest.raises(GateError, match="is not a share"):
            function(successes, trials)


def test_impossible_share_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        binomial_p(1, 2, 1.5)
