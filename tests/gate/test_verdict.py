import json
import math
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.evidence import Evidence, Forgetting, Gain, Latency, Regression, Votes
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows
from mlflow_finetune_plugin.gate.verdict import judge
from mlflow_finetune_plugin.gate.votes import Vote
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts


def policy(**sections):
    return GatePolicy.model_validate(sections)


def gain(won, lost, rows=300, over="champion", metric="exact_match", **more):
    """Rows of 0 and 1 of which the candidate gains ``won`` and loses ``lost``."""
    candidate = [1.0] * won + [0.0] * (rows - won)
    champion = [0.0] * won + [1.0] * lost + [0.0] * (rows - won - lost)
    return Gain(metric, over, PairedRows(ids(rows), tuple(candidate), tuple(champion)), **more)


def ids(rows):
    return tuple(str(i) for i in range(rows))


def forgetting(mean, rows=300, spread=0.1):
    noise = np.random.default_rng(0).normal(0, spread, rows)
    return Forgetting(ids(rows), tuple(mean + noise - noise.mean()))


def votes(voters, each, number=None):
    """``each`` is what one voter votes, e.g. "wwwlt"."""
    choices = {"w": "candidate", "l": "champion", "t": "tie", "b": "both_bad"}
    return Votes(tuple(Vote(str(v), choices[c]) for v in range(voters) for c in each), number)


T0 = datetime(2026, 11, 1, tzinfo=UTC)
GOOD = gain(30, 5)
GAIN_OFF = {"gain": None}


def only(verdict):
    (finding,) = verdict.findings
    return finding


@pytest.mark.parametrize(
    ("won", "lost", "at_least", "outcome"),
    [
        (30, 5, 0.0, "promote"),
        (10, 8, 0.0, "hold"),
        (5, 30, 0.0, "reject"),
        (30, 5, 0.06, "hold"),
        (30, 5, 0.2, "reject"),
    ],
)
def test_gain_alone_decides_by_its_interval(won, lost, at_least, outcome):
    verdict = judge(policy(gain={"at_least": at_least}), Evidence(True, gain=gain(won, lost)))
    assert verdict.outcome == outcome
    finding = only(verdict)
    assert finding.outcome == {"promote": "pass"}.get(outcome, outcome)
    assert finding.interval.value == pytest.approx((won - lost) / 300)
    assert finding.bound == at_least
    assert (finding.still_needed is not None) == (outcome == "hold")


def test_an_end_exactly_on_the_bound_does_not_exclude_it():
    edge = Gain("m", "champion", Interval(0.2, 0.1, 0.3, ""))
    assert judge(policy(gain={"at_least": 0.09}), Evidence(True, gain=edge)).outcome == "promote"
    assert judge(policy(gain={"at_least": 0.1}), Evidence(True, gain=edge)).outcome == "hold"
    assert judge(policy(gain={"at_least": 0.3}), Evidence(True, gain=edge)).outcome == "hold"


def test_held_gain_says_how_many_rows_would_decide():
    few = gain(12, 6, rows=100)  # 0.06, not yet sure
    finding = only(judge(GatePolicy(), Evidence(True, gain=few)))
    assert finding.outcome == "hold"
    assert f"about {finding.still_needed:,} more rows" in finding.reason
    times = (100 + finding.still_needed) / 100
    more = gain(round(12 * times * 1.15), round(6 * times), rows=round(100 * times))
    assert judge(GatePolicy(), Evidence(True, gain=more)).outcome == "promote"


def test_same_answers_everywhere_never_promote():
    assert judge(GatePolicy(), Evidence(True, gain=gain(0, 0))).outcome == "hold"
    same = Gain("token_f1", "champion", PairedRows(ids(300), (0.4,) * 300, (0.4,) * 300))
    verdict = judge(GatePolicy(), Evidence(True, gain=same))
    assert verdict.outcome == "hold"
    assert json.loads(verdict.to_json())["findings"][0]["interval"] == [None, None]


def test_where_less_is_better_the_candidate_gains_by_less():
    rng = np.random.default_rng(1)
    champion = rng.normal(3, 0.5, 300)
    rows = PairedRows(ids(300), tuple(champion - rng.gamma(2, 0.1, 300)), tuple(champion))
    assert judge(GatePolicy(), Evidence(True, gain=Gain("nats", "champion", rows, False))).outcome == "promote"
    assert judge(GatePolicy(), Evidence(True, gain=Gain("nats", "champion", rows, True))).outcome == "reject"


@pytest.mark.parametrize(
    ("has_champion", "over", "policy_over", "outcome"),
    [
        (True, "champion", "champion", "promote"),
        (True, "base", "champion", "hold"),
        (False, "base", "champion", "promote"),
        (False, "champion", "champion", "hold"),
        (True, "base", "base", "promote"),
        (True, "champion", "base", "hold"),
    ],
)
def test_gain_is_over_what_was_asked_and_over_the_base_without_a_champion(has_champion, over, policy_over, outcome):
    verdict = judge(policy(gain={"over": policy_over}), Evidence(has_champion, gain=gain(30, 5, over=over)))
    assert verdict.outcome == outcome
    if outcome == "hold":
        assert f"measured was exact_match over the {over}" in verdict.reason


def test_gain_in_another_metric_holds():
    assert judge(policy(gain={"metric": "token_f1"}), Evidence(True, gain=GOOD)).outcome == "hold"
    assert judge(policy(gain={"metric": "exact_match"}), Evidence(True, gain=GOOD)).outcome == "promote"


@pytest.mark.parametrize(
    "criteria",
    [
        {},
        {**GAIN_OFF, "forgetting": {}},
        {**GAIN_OFF, "votes": {"required": True}},
        {**GAIN_OFF, "latency": {"p95_ms": 800}},
        {**GAIN_OFF, "latency": {"over_champion": 1.2}},
        {**GAIN_OFF, "regressions": [{"data": "a.jsonl", "metric": "exact_match"}]},
    ],
)
def test_missing_evidence_holds(criteria):
    verdict = judge(policy(**criteria), Evidence(True))
    assert verdict.outcome == "hold"
    assert only(verdict).outcome == "hold"
    assert only(verdict).reason


@pytest.mark.parametrize(("mean", "outcome"), [(0.03, "promote"), (0.05, "hold"), (0.08, "reject"), (-0.2, "promote")])
def test_forgetting_decides_by_its_upper_end(mean, outcome):
    verdict = judge(policy(**GAIN_OFF, forgetting={"at_most": 0.05}), Evidence(True, forgetting=forgetting(mean)))
    assert verdict.outcome == outcome


def test_forgetting_weighs_tokens_and_may_come_as_an_interval():
    texts = Forgetting(("a", "b", "c"), (0.0, 0.3, 0.1), tokens=(10.0, 10.0, 80.0))
    finding = only(judge(policy(**GAIN_OFF, forgetting={}), Evidence(True, forgetting=texts)))
    assert finding.interval.value == pytest.approx(0.11)
    known = Interval(0.01, 0.0, 0.02, "from the run")
    assert judge(policy(**GAIN_OFF, forgetting={}), Evidence(True, forgetting=known)).outcome == "promote"


@pytest.mark.parametrize(
    ("each", "required", "outcome", "finding_outcome"),
    [
        ("wwwwl", True, "promote", "pass"),
        ("wwwwl", False, "promote", "pass"),
        ("wlwlt", True, "hold", "hold"),
        ("wlwlt", False, "promote", "noted"),
        ("lllwl", True, "reject", "reject"),
        ("lllwl", False, "reject", "reject"),
        ("ttbbt", True, "hold", "hold"),
    ],
)
def test_votes_by_voter(each, required, outcome, finding_outcome):
    votes_policy = policy(votes={"required": required})
    verdict = judge(votes_policy, Evidence(True, gain=GOOD, votes=votes(20, each)))
    assert verdict.outcome == outcome
    assert verdict.findings[1].outcome == finding_outcome
    assert verdict.findings[1].details["counted"] == 20


@pytest.mark.parametrize("cast", [None, Votes(())])
@pytest.mark.parametrize(("required", "outcome"), [(True, "hold"), (False, "promote")])
def test_no_vote_holds_only_where_votes_are_required(cast, required, outcome):
    verdict = judge(policy(votes={"required": required}), Evidence(True, gain=GOOD, votes=cast))
    assert verdict.outcome == outcome
    reasons = [finding.reason for finding in verdict.findings if finding.name == "votes"]
    assert reasons == (["no votes were cast"] if required else [])


def test_the_reason_names_the_planned_look_that_decided():
    mixed = ["wwwww", "wwlll", "wwwwl", "wwwll", "wwlll"] * 4
    choices = {"w": "candidate", "l": "champion"}
    cast = tuple(Vote(str(v), choices[c]) for v, voted in enumerate(mixed) for c in voted)
    finding = only(judge(policy(**GAIN_OFF, votes={"required": True}), Evidence(True, votes=Votes(cast, 1))))
    assert finding.outcome == "pass"
    p, alpha = finding.details["look_at_20_p_better"], finding.details["look_at_20_alpha"]
    assert finding.reason.endswith(f"shown after 20, at a planned look: p = {p:.2g}, and {alpha:.2g} decides")
    assert finding.details["e_better"] < finding.details["boundary"]


def test_votes_are_read_by_default_where_there_are_any():
    assert judge(GatePolicy(), Evidence(True, gain=GOOD, votes=votes(20, "lllwl"))).outcome == "reject"
    assert judge(GatePolicy(votes=None), Evidence(True, gain=GOOD)).outcome == "promote"


def test_fewer_voters_than_the_minimum_hold_and_say_how_many_more():
    votes_policy = policy(**GAIN_OFF, votes={"required": True})
    finding = only(judge(votes_policy, Evidence(True, votes=votes(9, "wwwww"))))
    assert (finding.outcome, finding.still_needed, finding.still_needed_unit) == ("hold", 1, "voters")
    assert only(judge(votes_policy, Evidence(True, votes=votes(10, "wwwww")))).outcome == "pass"


@pytest.mark.parametrize(
    ("cast", "outcome"), [("wwwww", "promote"), ("lllll", "reject"), ("wlwlt", "promote"), ("", "promote")]
)
def test_without_a_champion_votes_over_the_base_may_decide_and_are_not_waited_for(cast, outcome):
    over_base = Votes(tuple(votes(12, cast).votes), 1, "base") if cast else None
    votes_policy = policy(votes={"required": True})
    verdict = judge(votes_policy, Evidence(False, gain=gain(30, 5, over="base"), votes=over_base))
    assert verdict.outcome == outcome
    finding = verdict.findings[1]
    assert (finding.outcome == "noted") == (cast in ("", "wlwlt"))
    if finding.outcome != "noted":
        assert "than the base, shown after" in finding.reason


def test_votes_over_somebody_else_are_no_evidence():
    votes_policy = policy(votes={})
    of_base, of_champion = Votes(votes(1, "w").votes, 1, "base"), votes(1, "w")
    with pytest.raises(GateError, match="votes over the base, where there is a champion"):
        judge(votes_policy, Evidence(True, gain=GOOD, votes=of_base))
    with pytest.raises(GateError, match="votes over a champion, where there is none"):
        judge(votes_policy, Evidence(False, gain=gain(30, 5, over="base"), votes=of_champion))


def test_voters_who_left_are_counted():
    finding = only(judge(policy(**GAIN_OFF, votes={"required": True}), Evidence(True, votes=votes(40, "ww"))))
    assert finding.outcome == "pass"
    assert (finding.details["unfinished_voters"], finding.details["left_after_win"]) == (40, 40)
    assert finding.details["open_voters"] == 0


def test_open_voters_hold_and_the_reason_says_so():
    cast = tuple(Vote(str(voter), "candidate", cast_at=T0) for voter in range(40))
    finding = only(
        judge(policy(**GAIN_OFF, votes={"required": True}), Evidence(True, votes=Votes(cast, 1, read_at=T0)))
    )
    assert finding.outcome == "hold"
    assert "40 voters can still vote, and missing votes count against a decision" in finding.reason
    assert finding.details["look_at_20_p_better"] is None


def test_one_eager_voter_is_one_voter():
    votes_policy = policy(**GAIN_OFF, votes={"required": True, "minimum": 1})
    assert judge(votes_policy, Evidence(True, votes=votes(1, "w" * 500))).outcome == "hold"
    by_vote = policy(**GAIN_OFF, votes={"required": True, "minimum": 1, "unit": "vote", "per_voter": 500})
    verdict = judge(by_vote, Evidence(True, votes=votes(1, "w" * 500)))
    assert verdict.outcome == "promote"
    assert "true of these voters only" in verdict.reason


def test_vote_unit_counts_decisive_votes_under_the_cap():
    votes_policy = policy(**GAIN_OFF, votes={"unit": "vote", "required": True, "per_voter": 2})
    finding = only(judge(votes_policy, Evidence(True, votes=votes(30, "twbww"))))
    assert finding.details["counted"] == 60
    assert (finding.details["ties"], finding.details["both_bad"], finding.details["wins"]) == (30, 30, 90)
    assert finding.outcome == "pass"


def test_later_candidates_share_the_error_rate():
    votes_policy = policy(**GAIN_OFF, votes={"required": True})
    alone, first, tenth = (
        only(judge(votes_policy, Evidence(True, votes=votes(12, "wwwlw", number)))) for number in (None, 1, 10)
    )
    assert alone.details["alpha"] == 0.05
    assert first.details["alpha"] == pytest.approx(0.03039636)
    assert (alone.outcome, tenth.outcome) == ("pass", "hold")


def timed(p95_ms, answers=300):
    """Latencies whose 95th percentile is about this."""
    return LatencyCounts.of([p95_ms / 2] * (answers * 9 // 10) + [p95_ms] * (answers // 10))


def test_latency_has_two_bounds():
    votes_policy = policy(**GAIN_OFF, latency={"p95_ms": 800, "over_champion": 1.2})
    sides = ((500, 600), (700, 500), (900, 900), (500, None))
    outcomes = [
        [
            finding.outcome
            for finding in judge(
                votes_policy, Evidence(True, latency=Latency(timed(candidate), timed(champion) if champion else None))
            ).findings
        ]
        for candidate, champion in sides
    ]
    assert outcomes == [["pass", "pass"], ["pass", "reject"], ["reject", "pass"], ["pass", "hold"]]


def test_first_candidate_has_no_champion_to_be_slower_than():
    votes_policy = policy(latency={"over_champion": 1.2})
    verdict = judge(votes_policy, Evidence(False, gain=gain(30, 5, over="base"), latency=Latency(timed(600))))
    assert verdict.outcome == "promote"
    assert verdict.findings[1].outcome == "noted"
    alone = judge(policy(**GAIN_OFF, latency={"over_champion": 1.2}), Evidence(False, latency=Latency(timed(600))))
    assert alone.outcome == "hold"
    assert alone.reason == "nothing that the policy asks for could be judged"


def test_regression_below_its_bound_rejects():
    votes_policy = policy(
        regressions=[{"data": "a.jsonl", "metric": "exact_match"}, {"data": "b.jsonl", "metric": "exact_match"}]
    )
    good = (Regression("a.jsonl", "exact_match", 1.0), Regression("b.jsonl", "exact_match", 1.0))
    assert judge(votes_policy, Evidence(True, gain=GOOD, regressions=good)).outcome == "promote"
    bad = (good[0], Regression("b.jsonl", "exact_match", 0.99))
    assert judge(votes_policy, Evidence(True, gain=GOOD, regressions=bad)).outcome == "reject"
    assert judge(votes_policy, Evidence(True, gain=GOOD, regressions=good[:1])).outcome == "hold"


def test_a_rejection_outweighs_what_is_open():
    votes_policy = policy(forgetting={}, latency={"p95_ms": 800})
    verdict = judge(votes_policy, Evidence(True, gain=GOOD, latency=Latency(timed(900))))
    assert [f.outcome for f in verdict.findings] == ["pass", "hold", "reject"]
    assert verdict.outcome == "reject"
    assert verdict.reason.startswith("latency p95: p95 899.8 [")
    assert verdict.reason.endswith(" of 300 answers: above the budget, 800 ms")


def test_verdict_is_json_with_its_policy():
    votes_policy = policy(votes={}, latency={"p95_ms": 800})
    verdict = judge(votes_policy, Evidence(True, gain=GOOD, votes=votes(20, "wwwwl"), latency=Latency(timed(700))))
    content = json.loads(verdict.to_json(), parse_constant=pytest.fail)
    assert (content["outcome"], content["policy_digest"]) == ("promote", votes_policy.digest())
    assert [f["name"] for f in content["findings"]] == ["gain", "votes", "latency p95"]
    assert content["findings"][0]["estimate"] == pytest.approx(25 / 300)
    assert content["findings"][0]["details"]["mcnemar_p"] < 0.001
    assert content["findings"][1]["details"]["boundary"] == pytest.approx(20 / 0.35)
    assert (
        verdict.to_json()
        == judge(
            votes_policy, Evidence(True, gain=GOOD, votes=votes(20, "wwwwl"), latency=Latency(timed(700)))
        ).to_json()
    )


@pytest.mark.parametrize(
    "broken",
    [
        lambda: Gain("m", "champion", Interval(math.nan, 0, 1, "")),
        lambda: Gain("m", "champion", Interval(0.5, math.nan, 1, "")),
        lambda: Evidence(True, forgetting=Interval(0.5, 0, math.nan, "")),
        lambda: Forgetting(("a",), (math.nan,)),
        lambda: Forgetting(("a", "b"), (0.1, 0.2), tokens=(5.0, 0.0)),
        lambda: Forgetting((), ()),
        lambda: Latency(LatencyCounts()),
        lambda: Latency(timed(100), LatencyCounts()),
        lambda: Regression("a", "m", math.nan),
        lambda: Votes((), 0),
        lambda: Evidence(True, regressions=(Regression("a", "m", 1.0), Regression("a", "m", 0.5))),
    ],
)
def test_numbers_that_are_none_are_refused(broken):
    with pytest.raises(GateError, match="fix:") as caught:
        broken()
    assert isinstance(caught.value, ValueError)


def test_ten_thousand_votes_are_decided_in_a_blink():
    rng = np.random.default_rng(2)
    drawn = zip(rng.integers(2000, size=10_000), rng.choice(["candidate", "champion"], size=10_000), strict=True)
    cast = tuple(Vote(str(voter), str(choice)) for voter, choice in drawn)
    for unit in ("voter", "vote"):
        start = time.process_time()
        judge(
            policy(**GAIN_OFF, votes={"unit": unit, "required": True, "per_voter": 100}),
            Evidence(True, votes=Votes(cast)),
        )
        assert time.process_time() - start < 0.6  # the benchmark holds it to 0.1 on an idle core
