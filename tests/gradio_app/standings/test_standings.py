"""What a reading of votes comes to: every number here is counted by hand."""

import json
import math
from dataclasses import replace

import pytest
from votes_cast import read, vote

from gradio_app.standings.json import standings_json, thinned
from gradio_app.standings.standings import ordered_pair, standings_of
from gradio_app.standings.terms import DEFAULT_TERMS, VoteTerms
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.promotion.error_rates import NumberedTest, VotePairs
from mlflow_finetune_plugin.promotion.error_rates.vote_pairs import vote_pair_key
from mlflow_finetune_plugin.votes.mlflow.reading import CheckedVote

CHAMPION = {"champion": "1", "challenger": "2"}


def four_votes():
    return (
        vote(1, "left", voter="ann", left="2", right="1", prompt_set="greetings", reasons=("correct", "shorter")),
        vote(2, "left", voter="bob", left="1", right="2", prompt_set="greetings", reasons=("correct",)),
        vote(3, "tie", voter="ann", left="2", right="1"),
        vote(4, "both_bad", voter="ann", left="2", right="1", prompt_set="greetings"),
    )


def test_a_pair_is_counted_from_the_candidates_view():
    (standing,) = standings_of(read(*four_votes()), CHAMPION).pairs
    people = standing.people
    assert standing.pair == ("2", "1")
    assert (people.candidate_wins, people.champion_wins, people.ties, people.both_bad) == (1, 1, 1, 1)
    assert (people.voters, people.most_votes, people.is_flooded) == (2, 3, True)
    assert (people.left.wins, people.left.votes) == (2, 2)


def test_judges_stand_beside_people_and_in_no_number_of_theirs():
    by_judge = {"voter": "judge:m", "kind": "judge", "reasons": ("correct",), "prompt_set": "greetings"}
    judged = [vote(n, "left", left="2", right="1", **by_judge) for n in (1, 7, 8)]
    (standing,) = standings_of(read(*four_votes(), *judged), CHAMPION).pairs
    (of_people,) = standings_of(read(*four_votes()), CHAMPION).pairs
    assert replace(standing, judges=()) == of_people
    (judge,) = standing.judges
    assert (judge.voter, judge.summary.candidate_wins, judge.agreed, judge.shared) == ("judge:m", 3, 1, 1)


def test_a_pair_that_only_a_judge_voted_on_is_shown_without_people():
    (standing,) = standings_of(read(vote(1, voter="judge:m", kind="judge"))).pairs
    assert (standing.people.votes, len(standing.judges)) == (0, 1)
    assert standing.path.sentence == "Undecided: no vote prefers a side yet."


def test_tags_and_prompt_sets_are_groups_of_their_own():
    (standing,) = standings_of(read(*four_votes()), CHAMPION).pairs
    tags = [(group.name, group.candidate_wins, group.champion_wins) for group in standing.tags]
    assert tags == [("correct", 1, 1), ("shorter", 1, 0)]
    sets = [(one.name, one.candidate_wins, one.champion_wins, one.ties, one.both_bad) for one in standing.prompt_sets]
    assert sets == [("greetings", 1, 1, 0, 1), ("", 0, 0, 1, 0)]
    assert standing.prompt_sets[1].win_rate is None
    assert standing.tags[1].win_rate.low == pytest.approx(0.2065, abs=1e-4)  # Wilson's for 1 of 1: 1 / (1 + 1.96^2)


@pytest.mark.parametrize(
    ("pair", "aliases", "ordered"),
    [
        (("1", "2"), {}, ("2", "1")),
        (("2", "10"), {}, ("10", "2")),
        (("1", "2"), {"champion": "2"}, ("1", "2")),
        (("2", "base"), {"champion": "2"}, ("2", "base")),
        (("base", "3"), {}, ("3", "base")),
    ],
)
def test_the_candidate_comes_first(pair, aliases, ordered):
    assert ordered_pair(pair, aliases) == ordered


def test_three_versions_are_ranked_and_two_are_not():
    two = standings_of(read(*four_votes()), CHAMPION)
    assert two.ranking is None
    beaten = [vote(n, "left", voter=f"v-{n}", left="3", right="2") for n in (11, 12)]
    three = standings_of(read(*four_votes(), *beaten), CHAMPION)
    assert three.ranking.models[0].name == "3"
    assert {model.name: model.comparisons for model in three.ranking.models} == {"1": 4, "2": 6, "3": 2}
    assert [one.pair for one in three.pairs] == [("2", "1"), ("3", "2")]


def test_a_pair_has_the_number_under_which_the_gate_tested_it():
    beaten = [vote(n, "left", voter=f"v-{n}", left="3", right="2") for n in (11, 12)]
    tested = VotePairs({vote_pair_key("1", "2", VotesPolicy()): NumberedTest(1, 0, is_better=True)})
    pairs = standings_of(read(*four_votes(), *beaten), CHAMPION, tested=tested).pairs
    assert [one.path.pair_number for one in pairs] == [1, 2]
    assert pairs[1].path.test.alpha == pytest.approx(2 * 0.05 * 6 / math.pi**2 / 4)


def test_a_candidate_is_weighed_by_its_own_terms():
    by_vote = VoteTerms(VotesPolicy(unit="vote", minimum=2, alpha=0.2))
    reading = read(*four_votes())
    (own,) = standings_of(reading, CHAMPION, {"2": by_vote}).pairs
    assert (own.path.policy.unit, own.path.policy.minimum, own.terms_note) == ("vote", 2, "")
    (default,) = standings_of(reading, CHAMPION).pairs
    assert (default.path.policy.unit, default.terms_note) == ("voter", DEFAULT_TERMS.note)


def test_votes_that_do_not_count_are_told_and_in_no_pair():
    reading = read(*four_votes())
    refused = CheckedVote(reading.votes[0].vote, "without two receipts")
    reading = replace(reading, votes=(refused, *reading.votes[1:]), unreadable=2)
    found = standings_of(reading, CHAMPION)
    assert (found.votes, found.counted) == (6, 3)
    assert found.not_counted == {"feedback that is not a vote, or was changed": 2, "without two receipts": 1}
    assert found.pairs[0].people.votes == 3


def test_nobody_voted():
    found = standings_of(read())
    assert (found.votes, found.pairs, found.ranking, found.pair(None)) == (0, (), None, None)


def test_a_pair_without_votes_falls_back_to_the_one_with_most():
    found = standings_of(read(*four_votes()), CHAMPION)
    assert found.pair(("9", "8")) is found.pairs[0]
    assert found.pair(("2", "1")) is found.pairs[0]


def test_json_is_whole_and_tells_nobody_s_name():
    beaten = vote(11, "left", voter="v-secret", left="3", right="2")
    told = standings_json(standings_of(read(*four_votes(), beaten), CHAMPION))
    text = json.dumps(told, allow_nan=False)
    assert "v-secret" not in text
    assert "ann" not in text.replace("cannot", "")
    assert told["pairs"][0]["people"]["candidate_wins"] == 1
    points = told["pairs"][0]["path"]["points"]
    assert points[0] == {"scores": 0, "evidence_for": 1.0, "evidence_against": 1.0}
    assert [point["scores"] for point in points] == [0, 1, 2]
    assert told["pairs"][0]["agreement"] == {"alpha": None, "agreeing": 0, "pairs": 0, "prompts": 0, "voters": 0}
    strongest = told["ranking"]["models"][0]
    assert (strongest["version"], strongest["strength"]["high"]) == ("3", None)  # nobody took a point from it


def test_a_long_path_is_thinned_and_keeps_its_ends():
    assert thinned(5, 400) == [0, 1, 2, 3, 4]
    assert thinned(10_001, 5) == [0, 2500, 5000, 7500, 10_000]
