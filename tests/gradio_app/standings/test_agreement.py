"""Agreement of people on the same prompts, against a published example and small ones worked out by hand."""

import pytest
from votes_cast import read, vote

from gradio_app.standings.agreement import VoterAgreement, krippendorff_alpha, voter_agreement

PUBLISHED = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)
"""Krippendorff 2011, section C: four observers, twelve units, missing data; nominal alpha = .743."""


def agreement(*votes):
    return voter_agreement(read(*votes).between("2", "1"))


def test_alpha_of_the_published_example():
    columns = zip(*(row.split() for row in PUBLISHED), strict=True)
    units = [[value for value in column if value != "."] for column in columns]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize(
    ("units", "alpha"),
    [
        ([("a", "a"), ("b", "b")], 1.0),
        ([("a", "b"), ("a", "b")], -0.5),  # n = 4: (3 * 0 - 4) / (12 - 4)
        ([("a", "a"), ("a", "a")], None),  # nothing differs, so nothing is known of chance
        ([("a",), ("b",)], None),
        ([], None),
    ],
)
def test_alpha_of_small_ones(units, alpha):
    assert krippendorff_alpha(units) == alpha


def test_people_agree_on_a_version_whatever_side_it_was_on():
    """Two prompts, agreed on one: alpha = (3 * 2 - 6) / (12 - 6), three of four votes being for version 2."""
    said = agreement(
        vote(1, "left", voter="ann", left="2", right="1", question="hi?"),
        vote(2, "right", voter="bob", left="1", right="2", question="hi?"),
        vote(3, "left", voter="ann", left="2", right="1", question="why?"),
        vote(4, "tie", voter="bob", left="2", right="1", question="why?"),
        vote(5, "left", voter="ann", left="2", right="1", question="asked by one"),
    )
    assert said == VoterAgreement(alpha=0.0, agreeing=1, pairs=2, prompts=2, voters=2)


def test_of_a_voter_who_judged_a_prompt_twice_the_first_vote_counts():
    said = agreement(
        vote(1, "left", voter="ann", question="hi?"),
        vote(2, "right", voter="ann", question="hi?"),
        vote(3, "left", voter="bob", question="hi?"),
        vote(4, "left", voter="eve", question="hi?"),
    )
    assert (said.agreeing, said.pairs, said.prompts, said.voters) == (3, 3, 1, 3)


def test_one_voter_alone_agrees_with_nobody():
    assert agreement(vote(1, voter="ann"), vote(2, voter="ann")) == VoterAgreement(None, 0, 0, 0, 0)
