"""What a person reads: sentences first, nothing from a vote as markup, faults beside the last picture."""

from datetime import UTC, datetime
from xml.etree import ElementTree

import pytest
from votes_cast import NOON, read, vote

from gradio_app.standings.html import headline, not_counted_html, overview_html, pair_html, state_html
from gradio_app.standings.standings import standings_of

NINE = datetime(2026, 11, 22, 9, 30, 5, tzinfo=UTC)
SENTENCE = "Decided: version 2 is preferred to version 1, shown after 10 voters, at a planned look."
"""All of the first ten voters prefer it, which the first planned look decides. Betting on scores of .6 would need 30."""
HOSTILE = "<img src=x onerror=alert(1)>"


def standings(*votes):
    return standings_of(read(*votes), {"champion": "1"})


def text_of(html: str) -> str:
    return " ".join(" ".join(ElementTree.fromstring(f"<div>{html}</div>").itertext()).split())  # our own


def test_the_sentence_comes_first():
    cast = [vote(n, "left", voter=f"v-{n}", left="2", right="1") for n in range(30)]
    told = text_of(pair_html(standings(*cast).pairs[0]))
    assert told.startswith(SENTENCE)
    assert "version 2 preferred 30 version 1 preferred 0" in told
    assert "100% of 30 (89% to 100%)" in told  # Wilson: 30 / (30 + 1.96^2)
    assert "not known: two people have not judged the same prompt" in told


def test_the_headline_says_who_is_preferred_and_what_a_decision_still_needs():
    cast = [vote(n, "left", voter=f"v-{n}", left="2", right="1") for n in range(7)]
    standing = standings(*cast).pairs[0]
    assert standing.path.test.still_needed > 0
    assert headline(standing) == (
        f"7 of 7 votes prefer version 2; about {standing.path.test.still_needed} more voters will decide, "
        "if they vote like those so far."
    )


def test_the_headline_says_so_where_the_rest_cannot_be_estimated():
    (standing,) = standings_of(read(vote(1, left="2", right="1"), read_at=NOON), {"champion": "1"}).pairs
    assert headline(standing) == (
        "1 of 1 vote prefers version 2; how many more voters will decide cannot be estimated yet."
    )


def test_the_numbers_are_behind_details_and_warnings_are_counted_in_its_title():
    biased = [vote(n, "left", voter=f"v-{n % 5}", left="12"[n % 2], right="21"[n % 2]) for n in range(20)]
    html = pair_html(standings(*biased).pairs[0])
    assert html.index("<details") > html.index("mf-tiles")
    assert html.index("mf-forest") > html.index('<details class="mf-details" id="standings-numbers">')
    assert "Can these votes be trusted? 2 warnings</summary>" in html


def test_nothing_of_a_vote_becomes_markup():
    cast = vote(1, "left", voter=HOSTILE, kind="judge", left="2", right="1", reasons=(HOSTILE,), prompt_set=HOSTILE)
    person = vote(2, "left", left="2", right="1", reasons=(HOSTILE,), prompt_set=HOSTILE)
    found = standings(cast, person)
    html = pair_html(found.pairs[0]) + overview_html(found) + not_counted_html(found)
    assert "<img" not in html
    assert HOSTILE in text_of(html)
    assert "<img" not in state_html(HOSTILE, found, NINE, HOSTILE)


def test_a_fault_is_told_beside_the_time_of_the_last_picture():
    told = text_of(state_html("bot", standings(vote(1)), NINE, "the tracking server cannot be asked"))
    assert told.startswith("The votes cannot be read right now. the tracking server cannot be asked")
    assert told.endswith("1 vote on bot ; the standings below are of 09:30:05 UTC")
    assert text_of(state_html("bot", standings(vote(1)), NINE, None)) == "1 vote on bot ; as of 09:30:05 UTC"


def test_a_bias_to_one_side_is_told_as_suspect():
    cast = [vote(n, "left", voter=f"v-{n % 5}", left="12"[n % 2], right="21"[n % 2]) for n in range(20)]
    told = text_of(pair_html(standings(*cast).pairs[0]))
    assert "20 of 20: 100% (84% to 100%); suspect (p = 1.9e-06): voters may prefer a position, not an answer" in told


def test_one_pair_needs_no_overview_and_three_versions_a_ranking():
    one = standings(vote(1))
    assert overview_html(one) == ""
    three = standings(vote(1, left="2", right="1"), vote(2, voter="v-2", left="3", right="1"))
    told = text_of(overview_html(three))
    assert "Ranking" in told
    assert "2 vs 1" in told
    assert "no other side took a point from" in told


@pytest.mark.parametrize(("left", "better"), [("2", "shorter"), ("1", "longer")])
def test_a_length_that_wins_is_told_by_its_name(left, better):
    """In these votes the left answer is the shorter one, and version 2 always wins."""
    won, other = ("left", "1") if left == "2" else ("right", "2")
    cast = [vote(n, won, voter=f"v-{n}", left=left, right=other) for n in range(20)]
    assert f"or the better answers are {better}" in text_of(pair_html(standings(*cast).pairs[0]))
