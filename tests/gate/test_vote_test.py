"""The decision of people's votes: who counts when, what the planned look adds, and how often equal models pass."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.vote_test import run_vote_test
from mlflow_finetune_plugin.gate.votes import Vote

T0 = datetime(2026, 11, 1, tzinfo=UTC)
POLICY = VotesPolicy()
NO_LOOK = VotesPolicy(planned_voters=None)


def cast(wins, order="at once", prompts=None, spread_s=1):
    """``wins`` (voters, votes): one after another, or all voters in turns."""
    voters, each = wins.shape
    turns = [(v, i) for i in range(each) for v in range(voters)]
    turns = sorted(turns) if order == "one after another" else turns
    return tuple(
        Vote(
            str(v),
            "candidate" if wins[v, i] else "champion",
            None if prompts is None else str(prompts[v, i]),
            T0 + timedelta(seconds=n * spread_s),
        )
        for n, (v, i) in enumerate(turns)
    )


def decide(votes, policy=POLICY, hours=1):
    return run_vote_test(policy, Votes(tuple(votes), 1, read_at=T0 + timedelta(hours=hours)))


def share_decided(outcome, sims, make, policy=POLICY, **more):
    rng = np.random.default_rng(7)
    return np.mean([decide(make(rng), policy, **more).outcome == outcome for _ in range(sims)])


def test_simultaneous_judges_lose_no_vote():
    """Version 0.1 closed a voter once five others had begun: ten judges who all preferred the candidate were not enough."""
    test = decide(cast(np.ones((10, 20))))
    assert (test.outcome, test.counted, test.open_voters) == ("better", 10, 0)


def test_an_open_voters_missing_votes_count_against_either_decision():
    begun = cast(np.ones((40, 1)))
    open_test, closed_test = decide(begun), decide(begun, hours=25)
    assert (open_test.outcome, open_test.open_voters) == ("undecided", 40)
    assert (open_test.mean.low < 0.5 < open_test.mean.high, open_test.mean.value) == (True, pytest.approx(0.6))
    assert (closed_test.outcome, closed_test.unfinished, closed_test.left_after_win) == ("better", 40, 40)


def test_evidence_once_seen_is_never_more_than_what_the_finished_voters_give():
    rng = np.random.default_rng(0)
    votes = cast(rng.random((30, 5)) < 0.6)
    final = decide(votes)
    for length in range(1, len(votes)):
        test = decide(votes[:length])
        for now, last in (
            (test.evidence_for, final.evidence_for),
            (test.evidence_against, final.evidence_against),
        ):
            assert (np.array(now) <= np.array(last[: test.counted + 1]) + 1e-9).all()


def test_planned_looks_are_made_once_when_their_voters_are_finished():
    rng = np.random.default_rng(3)
    votes = cast(rng.random((40, 5)) < 0.66, "one after another")
    looks = [decide(votes[: 5 * n]).planned_looks for n in (9, 10, 19, 20, 30, 40)]
    assert [[look.p_better is not None for look in both] for both in looks[:4]] == [
        [False, False],
        [True, False],
        [True, False],
        [True, True],
    ]
    assert looks[3] == looks[4] == looks[5], "voters who come later do not change them"
    test = decide(votes)
    assert [look.voters for look in test.planned_looks] == [10, 20]
    parts = [look.alpha / test.alpha for look in test.planned_looks] + [1 / test.boundary / test.alpha]
    assert parts == pytest.approx([0.15, 0.5, 0.35])


@pytest.mark.parametrize(
    ("policy", "looks"),
    [
        (VotesPolicy(planned_voters=None), []),
        (VotesPolicy(minimum=30), [30]),
        (VotesPolicy(minimum=3), [20]),
        (VotesPolicy(minimum=15, planned_voters=40), [15, 40]),
    ],
)
def test_looks_follow_the_policy(policy, looks):
    assert [look.voters for look in decide([], policy).planned_looks] == looks


def test_planned_looks_decide_where_betting_does_not_yet():
    wins = np.array([[1] * won + [0] * (5 - won) for won in (5, 2, 4, 3, 2) * 4])  # a mean of .64
    with_looks, without = (decide(cast(wins), policy) for policy in (POLICY, NO_LOOK))
    assert (with_looks.outcome, with_looks.decided_at) == ("better", 20)
    assert without.outcome == "undecided"
    assert decide(cast(1 - wins)).outcome == "worse"
    clear = np.tile([1, 1, 1, 1, 0], (10, 1))
    assert (decide(cast(clear)).outcome, decide(cast(clear)).decided_at) == ("better", 10)
    assert with_looks.deciding_look == with_looks.planned_looks[1]
    assert decide(cast(np.ones((10, 5)))).deciding_look is None, "the evidence alone decides as early"


def test_voters_who_share_few_prompts_decide_nothing_alone():
    wins = np.tile([1, 1, 1, 1, 0], (60, 1))
    prompts = np.tile(np.arange(5), (60, 1))
    shared, apart = decide(cast(wins, prompts=prompts)), decide(cast(wins))
    assert apart.outcome == "better"
    assert (shared.outcome, shared.prompts, shared.lacks_prompts) == ("undecided", 5, True)


def test_a_lead_that_was_lost_is_no_decision():
    """Version 0.1 still called a candidate better whose mean had fallen below 1/2."""
    wins = np.concatenate([np.ones((12, 5)), np.zeros((78, 5))])
    assert decide(cast(wins[:12], "one after another")).outcome == "better"
    assert decide(cast(wins, "one after another")).outcome == "worse"


def test_single_votes_have_no_planned_look():
    test = decide(cast(np.ones((1, 12))), VotesPolicy(unit="vote", per_voter=12))
    assert (test.outcome, test.planned_looks, test.counted) == ("better", (), 12)


@pytest.mark.simulation
@pytest.mark.parametrize("order", ["one after another", "at once"])
def test_twenty_voters_of_65_percent_decide_in_three_of_four_cases(order):
    share = share_decided("better", 400, lambda rng: cast(rng.random((20, 5)) < 0.65, order))
    assert share >= 0.75 - 2 * np.sqrt(0.75 * 0.25 / 400)


def shared_prompts(prompts):
    def make(rng):
        prompt_of_vote = rng.integers(prompts, size=(100, 5))
        return cast(rng.random((100, 5)) < rng.beta(1, 1, prompts)[prompt_of_vote], prompts=prompt_of_vote)

    return make


def busy_fans(rng):
    votes = []
    for voter in range(100):
        busy = rng.random() < 0.5
        for _ in range(5 if busy else 1):
            won = rng.random() < (0.6 if busy else 0.4)
            votes.append(Vote(str(voter), "candidate" if won else "champion", None, T0))
    return votes


def leave_when_behind(rng):
    votes = []
    for voter in range(100):
        share, lead = rng.beta(8, 8), 0
        for _ in range(5):
            won = rng.random() < share
            lead += 1 if won else -1
            votes.append(Vote(str(voter), "candidate" if won else "champion", None, T0))
            if lead < 0:
                break
    return votes


NULLS = {
    "one vote each": lambda rng: cast(rng.random((40, 1)) < 0.5),
    "alike": lambda rng: cast(rng.random((40, 5)) < 0.5),
    "tastes differ": lambda rng: cast(rng.random((40, 5)) < rng.beta(0.5, 0.5, (40, 1))),
    "a tenth hates the candidate": lambda rng: cast(
        rng.random((40, 5)) < np.where(rng.random((40, 1)) < 0.1, 0, 0.5 / 0.9)
    ),
    "5 shared prompts": shared_prompts(5),
    "50 shared prompts": shared_prompts(50),
    "busy voters prefer it": busy_fans,
    "voters leave when it is behind": leave_when_behind,
}


@pytest.mark.simulation
@pytest.mark.parametrize("name", NULLS)
def test_a_candidate_that_is_not_preferred_is_promoted_in_at_most_alpha(name):
    """``alpha`` of the first pair is 3 %. Each simulation has 300 comparisons."""
    promoted = share_decided("better", 300, NULLS[name], hours=48)
    assert promoted <= 0.0304 + 2 * np.sqrt(0.0304 * 0.97 / 300)
