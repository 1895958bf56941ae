from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.votes import (
    Vote,
    decisive_scores,
    prompt_scores,
    tally,
    voter_bounds,
    votes_by_voter,
)

CHOICES = {"w": "candidate", "l": "champion", "t": "tie", "b": "both_bad"}
T0 = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(hours=24)


def votes(text, minutes=1):
    """ "aw bl" is a win by voter a, then a loss by voter b, so many minutes apart; "aw+30" comes 30 hours later."""
    cast, at = [], T0
    for word in text.split():
        word, _, hours = word.partition("+")
        at += timedelta(hours=int(hours)) if hours else timedelta(minutes=minutes)
        cast.append(Vote(word[0], CHOICES[word[1]], word[2:] or None, at))
    return cast


def by_voter(cast, per_voter=2, now=None):
    return votes_by_voter(cast, per_voter=per_voter, closes_after=DAY, now=now)


def test_tally_counts_every_choice_and_voter():
    counts = tally(votes("aw aw bl ct ab"))
    assert (counts.candidate, counts.champion, counts.tie, counts.both_bad) == (2, 1, 1, 1)
    assert (counts.voters, counts.decisive) == (3, 3)


def test_decisive_scores_leave_out_ties_and_cap_each_voter():
    assert decisive_scores(votes("aw at bl aw ab aw bw"), per_voter=2).tolist() == [1, 0, 1, 1]


def test_voters_are_in_the_order_of_their_first_votes_and_their_first_votes_count():
    a, b, c = by_voter(votes("aw bl bl cw al cw aw"))
    assert [vote.choice for vote in a.votes] == ["candidate", "champion"]
    assert (a.shrunk, b.shrunk, c.shrunk) == (0.5, 0.0, 1.0)
    assert a.places == (0, 4)


def test_ties_and_both_bad_weigh_a_half():
    (voter,) = by_voter(votes("aw at ab aw"), per_voter=4)
    assert voter.shrunk == voter.plain == voter.lowest == voter.highest == 0.75


def test_missing_votes_weigh_as_ties_or_not_at_all_and_an_open_voter_has_bounds():
    (voter,) = by_voter(votes("aw aw al"), per_voter=5)
    assert voter.shrunk == pytest.approx(0.6)
    assert voter.plain == pytest.approx(2 / 3)
    assert (voter.lowest, voter.highest) == (pytest.approx(0.4), pytest.approx(0.8))


def test_a_voter_is_open_until_the_last_vote_or_a_day_without_one():
    cast = votes("aw")
    at = cast[0].cast_at
    assert [by_voter(cast, now=at + pause)[0].is_open for pause in (DAY, DAY + timedelta(seconds=1))] == [True, False]
    assert not by_voter(cast)[0].is_open, "without a time, no more votes come"
    assert not by_voter(votes("aw al"), now=T0)[0].is_open
    assert by_voter([Vote("a", "candidate")], now=T0)[0].is_open, "its time is unknown, so it may vote again"


def test_what_a_voter_casts_after_a_day_without_a_vote_does_not_count():
    cast = votes("aw bw al+30 al")
    voter = by_voter(cast, per_voter=3, now=cast[-1].cast_at)[0]
    assert len(voter.votes) == 1
    assert not voter.is_open


@pytest.mark.parametrize("seed", range(5))
def test_bounds_close_in_on_the_final_scores_and_never_cross_them(seed):
    rng = np.random.default_rng(seed)
    names = rng.integers(12, size=80) // rng.integers(1, 4, size=80)
    cast = [
        Vote(str(v), list(CHOICES.values())[c], cast_at=T0 + timedelta(hours=int(i)))
        for i, (v, c) in enumerate(zip(names, rng.integers(4, size=80), strict=True))
    ]
    final = voter_bounds(by_voter(cast, per_voter=4, now=None))
    before = None
    for length in range(1, 81):
        now = voter_bounds(by_voter(cast[:length], per_voter=4, now=cast[length - 1].cast_at))
        voters = len(now.low_plain)
        for low, last in ((now.low_shrunk, final.low_shrunk), (now.low_plain, final.low_plain)):
            assert (low <= last[:voters] + 1e-12).all()
        for high, last in ((now.high_shrunk, final.high_shrunk), (now.high_plain, final.high_plain)):
            assert (high >= last[:voters] - 1e-12).all()
        if before is not None:
            assert (now.low_shrunk[: len(before.low_shrunk)] >= before.low_shrunk - 1e-12).all()
            assert (now.high_plain[: len(before.high_plain)] <= before.high_plain + 1e-12).all()
        before = now


def test_leaving_after_a_win_gains_nothing_in_the_shrunk_score():
    rng = np.random.default_rng(1)
    log = []
    for voter in range(4000):
        for _ in range(5):
            won = rng.random() < 0.5
            log.append(Vote(str(voter), "candidate" if won else "champion"))
            if won:
                break
    bounds = voter_bounds(by_voter(log, per_voter=5))
    assert bounds.low_shrunk.mean() == pytest.approx(0.5, abs=0.01)
    assert bounds.low_plain.mean() > 0.6


def test_casting_more_votes_gains_nothing_in_the_plain_score():
    rng = np.random.default_rng(2)
    log = []
    for voter in range(4000):
        share, cast = (0.6, 5) if voter % 2 else (0.4, 1)
        log += [Vote(str(voter), "candidate" if rng.random() < share else "champion") for _ in range(cast)]
    bounds = voter_bounds(by_voter(log, per_voter=5))
    assert bounds.low_plain.mean() == pytest.approx(0.5, abs=0.015)
    assert bounds.low_shrunk.mean() > 0.53


def test_prompts_have_the_score_of_their_first_vote_where_voters_share_them():
    assert prompt_scores(by_voter(votes("awX blX bwY at"), per_voter=5)).tolist() == [1.0, 1.0, 0.5]
    assert prompt_scores(by_voter(votes("awX alX bwY bw"), per_voter=5)) is None, "one voter's own repetition"


def test_votes_that_do_not_count_share_no_prompt():
    assert prompt_scores(by_voter(votes("awX awY blZ blX"), per_voter=1)) is None


def test_no_vote_is_no_score():
    assert len(decisive_scores([], per_voter=1)) == len(by_voter([])) == 0
    assert len(voter_bounds([]).low_plain) == 0


def test_impossible_votes_and_caps_are_refused():
    with pytest.raises(GateError, match="no choice 'left'; fix: pick one of: candidate, champion, tie, both_bad"):
        Vote("a", "left")
    with pytest.raises(GateError, match="0 votes per voter"):
        decisive_scores([], per_voter=0)
    with pytest.raises(GateError, match="0 votes per voter"):
        by_voter([], per_voter=0)
    with pytest.raises(GateError, match="a pause of 0:00:00 closes voters"):
        votes_by_voter([], per_voter=1, closes_after=timedelta(0), now=None)
