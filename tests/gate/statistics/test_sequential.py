import math
import time

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.sequential import (
    VOTE_STAKES,
    VOTER_STAKES,
    beta_stakes,
    betting_test,
    confidence_sequence,
    log_factors,
    scores_still_needed,
)

WINS = [1.0] * 14 + [0.0] * 6


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 2), (2, 1)])
def test_capital_on_votes_is_the_beta_mixture_of_likelihood_ratios(a, b):
    # 20 votes, 14 won: the integral of (2p)^14 (2 - 2p)^6 over p = (1 + stake) / 2
    expected, _ = quad(lambda c: (1 + c) ** 14 * (1 - c) ** 6 * beta.pdf(c, a, b), 0, 1)
    assert betting_test(WINS, beta_stakes(a, b), alpha=0.05).e_better[-1] == pytest.approx(expected, rel=2e-3)


def test_uniform_stakes_after_straight_wins_by_hand():
    # the integral of (1 + c)^n from 0 to 1 is (2^(n + 1) - 1) / (n + 1)
    path = betting_test([1.0] * 4, beta_stakes(1, 1), alpha=0.05).e_better
    assert path == pytest.approx([1, 3 / 2, 7 / 3, 15 / 4, 31 / 5], rel=1e-3)


def test_every_stake_is_a_fair_bet_at_one_half():
    for scores, chances in (([0.0, 1.0], [0.5, 0.5]), ([0.0, 0.5, 0.9], [0.3, 0.475, 0.2916667])):
        factor = np.array(chances) / sum(chances) @ np.exp(log_factors(np.array(scores), VOTER_STAKES))
        mean = np.dot(scores, chances) / sum(chances)
        assert factor == pytest.approx(1 + VOTER_STAKES.shares * (2 * mean - 1))
    assert np.exp(VOTER_STAKES.log_weights).sum() == pytest.approx(1)


def test_better_and_worse_change_places():
    there, back = (betting_test(side, VOTE_STAKES, alpha=0.05) for side in (WINS, [1 - x for x in WINS]))
    np.testing.assert_allclose(there.e_better, back.e_worse)
    assert (there.mean.low, there.mean.high) == pytest.approx((1 - back.mean.high, 1 - back.mean.low))
    assert there.e_two_sided[-1] == (there.e_better[-1] + there.e_worse[-1]) / 2


def test_order_of_scores_does_not_matter_in_the_end():
    forward, backward = (betting_test(side, VOTE_STAKES, alpha=0.05) for side in (WINS, WINS[::-1]))
    assert forward.e_better[-1] == pytest.approx(backward.e_better[-1])
    assert forward.e_better[10] > backward.e_better[10]


def test_decision_stands_from_the_first_crossing_after_the_minimum():
    test = betting_test([1.0] * 12, VOTE_STAKES, alpha=0.05)
    assert test.e_better[test.better_at] >= test.boundary == 20 > test.e_better[test.better_at - 1]
    assert test.worse_at is None
    assert betting_test([1.0] * 12, VOTE_STAKES, alpha=0.05, minimum=10).better_at == 10
    assert betting_test([1.0] * 9, VOTE_STAKES, alpha=0.05, minimum=10).better_at is None
    fallen = betting_test([1.0] * 12 + [0.0] * 6, VOTE_STAKES, alpha=0.05)
    assert fallen.e_better[-1] < 20
    assert fallen.better_at == test.better_at


def test_confidence_sequence_excludes_one_half_exactly_when_the_capital_says_so():
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(200):
        scores = rng.binomial(5, rng.choice([0.4, 0.5, 0.7]), size=25) / 5
        test = betting_test(scores, VOTER_STAKES, alpha=0.05)
        assert (test.e_better[-1] >= 20, test.e_worse[-1] >= 20) == (test.mean.low >= 0.5, test.mean.high <= 0.5)
        outcomes.add((test.mean.low >= 0.5, test.mean.high <= 0.5))
    assert len(outcomes) == 3


def test_confidence_sequence_holds_the_mean_at_all_times():
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(200):
        scores = rng.binomial(5, 0.7, size=60) / 5
        ends = [confidence_sequence(scores[:n], VOTER_STAKES, alpha=0.05) for n in range(1, 61, 6)]
        missed += any(not i.low <= 0.7 <= i.high for i in ends)
    assert 0 < missed / 200 <= 0.10


@pytest.mark.parametrize(("scores", "low", "high"), [([], 0, 1), ([1.0] * 200, 0.9, 1), ([0.0] * 200, 0, 0.1)])
def test_confidence_sequence_of_one_sided_or_no_scores(scores, low, high):
    interval = confidence_sequence(scores, VOTE_STAKES, alpha=0.05)
    assert low <= interval.low <= low + 0.08
    assert high - 0.08 <= interval.high <= high


def paths_of(draw, sims, n, stakes, seed):
    """Share of simulated voters' rows that ever promote, looking after each of n scores, from the tenth on."""
    rng = np.random.default_rng(seed)
    capital = np.broadcast_to(np.exp(stakes.log_weights), (sims, 64)).copy()
    reached = np.zeros(sims, dtype=bool)
    at = np.full(sims, n + 1)
    for i in range(1, n + 1):
        capital *= np.exp(log_factors(draw(rng, sims), stakes))
        crossed = (capital.sum(axis=1) >= 20) & (i >= 10)
        at[crossed & ~reached] = i
        reached |= crossed
    return reached.mean(), float(np.median(at))


def voters(a, b, ties=0.0, votes=5):
    def draw(rng, sims):
        decisive = votes - rng.binomial(votes, ties, size=sims)
        return (rng.binomial(decisive, rng.beta(a, b, size=sims)) + (votes - decisive) / 2) / votes

    return draw


@pytest.mark.parametrize("draw", [voters(2, 2), voters(4, 4), voters(2, 2, ties=0.3), voters(1e6, 1e6)])
def test_voters_without_a_common_preference_seldom_promote(draw):
    assert paths_of(draw, 2000, 120, VOTER_STAKES, seed=2)[0] <= 0.05


def test_voters_who_prefer_the_candidate_promote_it_within_25():
    assert paths_of(voters(6.5e6, 3.5e6), 1000, 80, VOTER_STAKES, seed=3)[1] <= 25
    assert paths_of(voters(5.2, 2.8), 1000, 80, VOTER_STAKES, seed=4)[1] <= 25


def test_votes_promote_within_70_decisive_ones():
    assert paths_of(voters(6.5e6, 3.5e6, votes=1), 2000, 200, VOTE_STAKES, seed=5)[1] <= 70


def test_forecast_reaches_the_boundary_when_scores_go_on_alike():
    scores = [0.8, 0.6, 0.8, 0.4, 0.6]
    more = scores_still_needed(scores, VOTER_STAKES, alpha=0.05)
    both = betting_test(scores * 6, VOTER_STAKES, alpha=0.05)
    assert 10 < both.better_at < 30
    assert abs(both.better_at - 5 - more) <= 3
    assert scores_still_needed([1 - x for x in scores], VOTER_STAKES, alpha=0.05) == more


def test_forecast_knows_when_it_cannot_tell_or_need_not():
    assert scores_still_needed([], VOTE_STAKES, alpha=0.05) is None
    assert scores_still_needed([0.5] * 30, VOTE_STAKES, alpha=0.05) is None
    assert scores_still_needed([1.0, 0.0] * 30, VOTE_STAKES, alpha=0.05) is None
    assert scores_still_needed([1.0] * 30, VOTE_STAKES, alpha=0.05) == 0
    assert scores_still_needed([1.0] * 8, VOTE_STAKES, alpha=0.05, minimum=20) == 12


def test_ten_thousand_scores_take_a_blink():
    scores = np.random.default_rng(6).integers(0, 2, size=10_000).astype(float)
    start = time.process_time()
    test = betting_test(scores, VOTE_STAKES, alpha=0.05)
    assert time.process_time() - start < 0.5  # about 0.05 on an idle core
    assert np.isfinite(test.e_better).all()
    assert math.isfinite(betting_test([1.0] * 10_000, VOTE_STAKES, alpha=0.05).e_better[-1])


@pytest.mark.parametrize("scores", [[math.nan], [1.1], [-0.1], [math.inf]])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match="not a number from 0 to 1"):
        betting_test(scores, VOTE_STAKES, alpha=0.05)


@pytest.mark.parametrize(("alpha", "minimum"), [(0.0, 1), (0.5, 1), (math.nan, 1), (0.05, 0)])
def test_impossible_tests_are_refused(alpha, minimum):
    with pytest.raises(GateError, match="fix:"):
        betting_test([1.0], VOTE_STAKES, alpha=alpha, minimum=minimum)


@pytest.mark.parametrize("function", [confidence_sequence, scores_still_needed])
def test_impossible_error_rates_are_refused(function):
    with pytest.raises(GateError, match=r"an alpha of 0\.7 is not an error rate"):
        function([1.0], VOTE_STAKES, alpha=0.7)
