"""Counts, win rate and what else may have decided; expected values by hand."""

import pytest
from votes_cast import NOON, receipt

from mlflow_finetune_plugin.votes.checks import agreement, summarise
from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredSide, MirroredVote


def told(number, choice, *, voter="v-1", left="1", right="2", chars=(10, 20), kind="person") -> MirroredVote:
    sides = [
        MirroredSide(
            receipt(version, f"req-{number}-{place}"), f"req-{number}-{place}", f"tr-{number}-{place}", length, ""
        )
        for place, version, length in (("l", left, chars[0]), ("r", right, chars[1]))
    ]
    return MirroredVote(
        vote_id=f"{number}-{voter}", revision=1, journal="j", sequence=number, first_sequence=number, turn_id=f"t-{number}",
        session="s", voter=voter, kind=kind, choice=choice, left=sides[0], right=sides[1], prompt_digest="",
        cast_at=NOON, reasons=(), comment="",
    )  # fmt: skip


def test_nobody_voted():
    empty = summarise((), "2", "1")
    assert (empty.votes, empty.voters, empty.win_rate, empty.left, empty.longer) == (0, 0, None, None, None)
    assert not empty.is_flooded


def test_counts_and_win_rate_by_hand():
    votes = [told(n, "right") for n in range(8)] + [told(8, "left"), told(9, "left")]
    votes += [told(10, "tie"), told(11, "both_bad", voter="v-2")]
    found = summarise(votes, "2", "1")
    assert (found.candidate_wins, found.champion_wins, found.ties, found.both_bad) == (8, 2, 1, 1)
    assert found.win_rate is not None
    assert (found.win_rate.value, found.win_rate.low, found.win_rate.high) == pytest.approx(
        (0.8, 0.4902, 0.9433), abs=1e-4
    )
    assert (found.voters, found.most_active, found.most_votes) == (2, "v-1", 11)


def test_a_side_counts_by_version_not_by_place():
    votes = [told(1, "left", left="2", right="1"), told(2, "right")]
    assert summarise(votes, "2", "1").candidate_wins == 2


def test_only_ties_give_no_rate():
    found = summarise([told(1, "tie"), told(2, "both_bad")], "2", "1")
    assert found.win_rate is None
    assert found.left is None


def test_position_bias_is_seen():
    votes = [told(n, "left", left=str(1 + n % 2), right=str(2 - n % 2), chars=(5, 5)) for n in range(10)]
    found = summarise(votes, "2", "1")
    assert found.candidate_wins == 5
    assert found.left is not None
    assert (found.left.wins, found.left.p) == (10, pytest.approx(2 / 1024))
    assert found.left.is_suspect
    assert found.longer is None  # no pair differs in length


def test_length_bias_is_seen():
    votes = [told(n, "left", chars=(9, 2)) if n % 2 else told(n, "right", chars=(2, 9)) for n in range(10)]
    found = summarise(votes, "2", "1")
    assert found.longer is not None
    assert (found.longer.wins, found.longer.votes, found.longer.is_suspect) == (10, 10, True)
    assert found.left is not None
    assert not found.left.is_suspect


def test_a_flooding_voter_is_seen():
    votes = [told(n, "left", voter="v-flood") for n in range(30)] + [told(99, "right", voter="v-2")]
    found = summarise(votes, "2", "1")
    assert found.is_flooded
    assert (found.most_active, found.most_share) == ("v-flood", pytest.approx(30 / 31))


def test_agreement_of_judges_with_people():
    people = [told(1, "left"), told(1, "left", voter="v-2"), told(1, "right", voter="v-3"), told(2, "right")]
    people += [told(3, "left"), told(3, "right", voter="v-2"), told(4, "tie")]
    judges = [told(n, "left", voter="judge:m", kind="judge") for n in range(1, 5)]
    assert agreement(people, judges) == (1, 2)  # turn 1 the same, turn 2 not, turns 3 and 4 say nothing
