import numpy as np
import pytest
from scipy.stats import ttest_1samp

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.planned_look import planned_look_p


def test_without_shared_prompts_it_is_students_test_of_the_voters():
    rng = np.random.default_rng(0)
    votes = rng.integers(2, size=(20, 5))
    deviations, voters = (votes - 0.5).ravel() / 100, np.repeat(np.arange(20), 5)
    better, worse = planned_look_p(deviations, voters)
    expected = ttest_1samp(votes.mean(axis=1), 0.5, alternative="greater").pvalue
    assert (better, worse) == (pytest.approx(expected), pytest.approx(1 - expected))


def test_voters_with_different_numbers_of_votes_are_voters():
    """The mean of each voter's votes is the score, so a voter's votes weigh as one."""
    deviations = [0.5 / 3, 0.5 / 6, -0.5 / 6, 0.5 / 6, 0.5 / 6]  # scores 1, .5, 1 of voters with 1, 2 and 2 votes
    better, _ = planned_look_p(deviations, ["a", "b", "b", "c", "c"])
    assert better == pytest.approx(0.25, abs=0.01), "two of two voters, where the t-test says .09"


def test_shared_prompts_are_clusters_too():
    """Every voter gives the same answers, so the prompts alone are independent, and there are four of them."""
    wins = np.tile([1, 1, 1, 0], (20, 1))
    deviations, voters = (wins - 0.5).ravel() / 80, np.repeat(np.arange(20), 4)
    better, _ = planned_look_p(deviations, voters, np.tile(np.arange(4), 20))
    assert better == pytest.approx(ttest_1samp([1, 1, 1, 0], 0.5, alternative="greater").pvalue)


def test_one_prompt_and_no_spread():
    assert planned_look_p([0.1, 0.1, 0.2], "abc", "xxx") == (1.0, 1.0)
    assert planned_look_p([0.1] * 10, "abcdefghij") == (pytest.approx(2**-10, abs=5e-4), 1.0)
    assert planned_look_p([0.0, 0.0, 0.0], "abc") == (1.0, 1.0)


def test_one_vote_each_is_the_sign_test():
    better, _ = planned_look_p([0.5 / 20] * 15 + [-0.5 / 20] * 5, range(20))
    assert better == pytest.approx(0.0207, abs=0.003)  # Binomial(20, 1/2), 15 or more


def test_one_voter_is_refused():
    with pytest.raises(GateError, match="1 voters have no spread"):
        planned_look_p([0.1], ["a"])


@pytest.mark.simulation
@pytest.mark.parametrize("prompts", [None, 5, 20])
def test_equal_models_are_called_better_in_at_most_alpha(prompts):
    rng = np.random.default_rng(1)
    sims, errors = 2000, 0
    for _ in range(sims):
        shares = np.full(1, 0.5) if prompts is None else rng.beta(1, 1, size=prompts)
        prompt_of_vote = rng.integers(len(shares), size=(20, 5))
        deviations = ((rng.random((20, 5)) < shares[prompt_of_vote]) - 0.5).ravel() / 100
        names = None if prompts is None else prompt_of_vote.ravel()
        errors += planned_look_p(deviations, np.repeat(np.arange(20), 5), names)[0] <= 0.05
    assert errors / sims <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / sims)
