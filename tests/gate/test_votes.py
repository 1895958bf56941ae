import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.votes import Vote, decisive_scores, tally, voter_scores

CHOICES = {"w": "candidate", "l": "champion", "t": "tie", "b": "both_bad"}


def votes(text):
    """ "aw bl" is a win by voter a, then a loss by voter b."""
    return [Vote(word[0], CHOICES[word[1]]) for word in text.split()]


def random_votes(rng, voters=30, n=150):
    names = rng.integers(voters, size=n) // rng.integers(1, 4, size=n)
    return [Vote(str(v), list(CHOICES.values())[c]) for v, c in zip(names, rng.integers(4, size=n), strict=True)]


def test_tally_counts_every_choice_and_voter():
    counts = tally(votes("aw aw bl ct ab"))
    assert (counts.candidate, counts.champion, counts.tie, counts.both_bad) == (2, 1, 1, 1)
    assert (counts.voters, counts.decisive) == (3, 3)


def test_decisive_scores_leave_out_ties_and_cap_each_voter():
    assert decisive_scores(votes("aw at bl aw ab aw bw"), per_voter=2).tolist() == [1, 0, 1, 1]


def test_voter_counts_when_finished_and_by_first_votes_alone():
    assert voter_scores(votes("aw"), per_voter=2).scores.tolist() == []
    assert voter_scores(votes("aw al"), per_voter=2).scores.tolist() == [0.5]
    assert voter_scores(votes("aw aw al al al"), per_voter=2).scores.tolist() == [1.0]


def test_ties_and_both_bad_weigh_a_half():
    assert voter_scores(votes("aw at ab aw"), per_voter=4).scores.tolist() == [0.75]


def test_voters_count_in_the_order_of_their_first_votes():
    by_voter = voter_scores(votes("aw bl bl cw cw"), per_voter=2)
    assert by_voter.scores.tolist() == []  # a is open, and b and c wait for it
    assert by_voter.waiting == 3
    assert voter_scores(votes("aw bl bl cw cw aw"), per_voter=2).scores.tolist() == [1.0, 0.0, 1.0]


def test_voter_who_stays_away_is_closed_and_missing_votes_weigh_as_ties():
    by_voter = voter_scores(votes("aw bl bl cw"), per_voter=2, patience=2)
    assert by_voter.scores.tolist() == [0.75, 0.0]
    assert (by_voter.waiting, by_voter.unfinished, by_voter.left_after_win, by_voter.left_after_loss) == (1, 1, 1, 0)
    assert voter_scores(votes("aw bl bl cw aw"), per_voter=2, patience=2).scores.tolist() == [0.75, 0.0]  # too late


def test_scores_once_given_out_never_change():
    rng = np.random.default_rng(0)
    for _ in range(20):
        log = random_votes(rng)
        whole = voter_scores(log, per_voter=3).scores
        for length in range(len(log)):
            scores = voter_scores(log[:length], per_voter=3).scores
            np.testing.assert_array_equal(scores, whole[: len(scores)])


def test_leaving_after_a_win_gains_nothing():
    rng = np.random.default_rng(1)
    log = []
    for voter in range(4000):
        for _ in range(5):
            won = rng.random() < 0.5
            log.append(Vote(str(voter), "candidate" if won else "champion"))
            if won:
                break
    by_voter = voter_scores(log, per_voter=5)
    assert by_voter.scores.mean() == pytest.approx(0.5, abs=0.01)
    assert by_voter.unfinished == by_voter.left_after_win > 3700
    assert by_voter.left_after_loss == 0


def test_lowest_scores_take_every_missing_vote_for_lost():
    by_voter = voter_scores(votes("aw bw bt cl dw"), per_voter=2, patience=1)
    assert by_voter.scores.tolist() == [0.75, 0.75, 0.25]
    assert by_voter.lowest_scores.tolist() == [0.5, 0.75, 0.0]


def test_leaving_after_a_loss_flatters_the_scores_but_not_the_lowest():
    rng = np.random.default_rng(2)
    log = []
    for voter in range(4000):
        share = rng.beta(2, 2)
        for _ in range(5):
            won = rng.random() < share
            log.append(Vote(str(voter), "candidate" if won else "champion"))
            if not won and rng.random() < 0.5:
                break
    by_voter = voter_scores(log, per_voter=5)
    assert by_voter.scores.mean() > 0.53
    assert by_voter.lowest_scores.mean() < 0.5


def test_no_vote_is_no_score():
    assert len(decisive_scores([], per_voter=1)) == len(voter_scores([], per_voter=1).scores) == 0


def test_impossible_votes_and_caps_are_refused():
    with pytest.raises(GateError, match="no choice 'left'; fix: pick one of: candidate, champion, tie, both_bad"):
        Vote("a", "left")
    for function in (decisive_scores, voter_scores):
        with pytest.raises(GateError, match="0 votes per voter"):
            function([], per_voter=0)
    with pytest.raises(GateError, match="patience of 0"):
        voter_scores([], per_voter=1, patience=0)
