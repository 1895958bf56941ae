import math

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.statistics.ranking import Comparison, rank

# Agresti 2002, Categorical Data Analysis, table 10.10: American League 1987, wins of the row over the column
TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
WINS = [
    [0, 7, 9, 7, 7, 9, 11],
    [6, 0, 7, 5, 11, 9, 9],
    [4, 6, 0, 7, 7, 8, 12],
    [6, 8, 6, 0, 6, 7, 10],
    [6, 2, 6, 7, 0, 7, 12],
    [4, 4, 5, 6, 6, 0, 6],
    [2, 4, 1, 3, 1, 7, 0],
]
# section 10.6: strengths over Baltimore
PUBLISHED = (1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0.0)


def season():
    return [
        Comparison(f"{a}{b}{n}", TEAMS[a], TEAMS[b], 1)
        for a, row in enumerate(WINS)
        for b, wins in enumerate(row)
        for n in range(wins)
    ]


def test_strengths_equal_agrestis_baseball_example():
    ranking = rank(season(), prior_votes=0, n_resamples=10)
    strengths = {m.name: m.strength.value for m in ranking.models}
    over_baltimore = [strengths[team] - strengths["Baltimore"] for team in TEAMS]
    assert over_baltimore == pytest.approx(PUBLISHED, abs=1e-3)
    assert ranking.models[0].name == "Milwaukee"
    assert ranking.models[0].points == 50
    assert ranking.models[0].comparisons == 78
    assert ranking.win_probability("Boston", "New York") == pytest.approx(0.46, abs=0.01)  # Agresti: .46
    assert ranking.notes == ()


def test_two_models_by_hand():
    comparisons = [Comparison(str(i), "a", "b", 1) for i in range(6)] + [Comparison("x", "b", "a", 0.5)] * 4
    ranking = rank(comparisons, prior_votes=0, n_resamples=10)  # 8 points to 2
    assert ranking.win_probability("a", "b") == pytest.approx(0.8)
    assert ranking.models[0].strength.value == pytest.approx(math.log(4) / 2)


def test_a_tie_is_half_a_win_each_and_order_does_not_matter():
    tied = [Comparison("v", "a", "b", 0.5), Comparison("v", "b", "c", 0.5), Comparison("v", "a", "c", 1)]
    split = [Comparison("v", x, y, s) for x, y in (("a", "b"), ("c", "b")) for s in (0, 1)] + [
        Comparison("v", "c", "a", 0)
    ] * 2
    tied_strengths, split_strengths = (
        {m.name: m.strength.value for m in rank(c, n_resamples=2).models} for c in (tied * 2, split)
    )
    assert tied_strengths == pytest.approx(split_strengths)


def simulated(rng, strengths, voters, votes):
    comparisons = []
    for voter in range(voters):
        tastes = {name: s + rng.normal(0, 0.7) for name, s in strengths.items()}
        for _ in range(votes):
            a, b = rng.choice(list(strengths), size=2, replace=False)
            comparisons.append(
                Comparison(str(voter), str(a), str(b), int(rng.random() < 1 / (1 + math.exp(tastes[b] - tastes[a]))))
            )
    return comparisons


def test_intervals_are_over_voters_not_votes():
    comparisons = simulated(np.random.default_rng(0), {"a": 0.5, "b": 0.0, "c": -0.5}, voters=20, votes=60)
    widths = {}
    for unit in ("voters", "votes"):
        listed = [
            c if unit == "voters" else Comparison(str(i), c.first, c.second, c.score) for i, c in enumerate(comparisons)
        ]
        interval = rank(listed, n_resamples=400).models[0].strength
        assert interval.low < interval.value < interval.high
        widths[unit] = interval.high - interval.low
    assert widths["voters"] > 1.5 * widths["votes"]


@pytest.mark.simulation
def test_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = []
    for _ in range(60):
        log = [
            Comparison(str(i), a, b, int(rng.random() < p))
            for i, (a, b, p) in enumerate([("a", "b", 0.7311), ("b", "c", 0.5), ("a", "c", 0.7311)] * 40)
        ]
        strengths = {m.name: m.strength for m in rank(log, n_resamples=200).models}
        held.append(strengths["a"].low <= 2 / 3 <= strengths["a"].high)
    assert np.mean(held) >= 0.85


def test_groups_without_a_link_are_ranked_apart():
    ranking = rank([Comparison("v", "a", "b", 1), Comparison("w", "b", "a", 1), Comparison("w", "d", "c", 0.5)])
    assert ranking.groups == (("a", "b"), ("c", "d"))
    assert "cannot be compared: a, b | c, d" in ranking.notes[0]
    with pytest.raises(GateError, match="nothing links 'a' with 'c'"):
        ranking.win_probability("a", "c")


def test_one_sided_votes_are_finite_and_said():
    ranking = rank(
        [Comparison(str(i), "a", b, 1) for i in range(5) for b in ("b", "c")] + [Comparison("v", "b", "c", 0.5)]
    )
    assert ranking.models[0].name == "a"
    assert all(math.isfinite(m.strength.value) for m in ranking.models)
    assert [math.isinf(m.strength.high) for m in ranking.models] == [True, False, False]
    assert [math.isinf(m.strength.low) for m in ranking.models] == [False, True, True]
    assert ranking.notes == ("one-sided: no other side took a point from a, so only the prior bounds how far ahead",)
    with pytest.raises(GateError, match="no maximum likelihood: one-sided"):
        rank([Comparison("v", "a", "b", 1)], prior_votes=0)


def test_two_unbeaten_models_are_both_open_above():
    ranking = rank([Comparison(str(i), x, "c", 1) for i in range(5) for x in ("a", "b")])
    assert {m.name: math.isinf(m.strength.high) for m in ranking.models} == {"a": True, "b": True, "c": False}
    assert "took a point from a, b," in ranking.notes[0]


def test_one_voter_has_no_interval():
    ranking = rank([Comparison("v", "a", "b", 1), Comparison("v", "b", "a", 1)])
    assert (ranking.models[0].strength.low, ranking.models[0].strength.high) == (-math.inf, math.inf)
    assert "one voter" in ranking.notes[0]


def test_broken_comparisons_are_refused():
    with pytest.raises(ValueError, match="no comparison to rank by"):
        rank([])
    with pytest.raises(ValueError, match="scored nan"):
        Comparison("v", "a", "b", math.nan)
    with pytest.raises(GateError, match="compared with itself"):
        Comparison("v", "a", "a", 1)
    with pytest.raises(GateError, match="prior_votes is -1"):
        rank([Comparison("v", "a", "b", 1)], prior_votes=-1)
