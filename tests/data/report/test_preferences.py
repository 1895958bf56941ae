"""Findings on pairs of answers, and what stays silent."""

import pytest

from mlflow_finetune_plugin.data.report.preferences import PreferenceTally


def findings_of(pairs):
    tally = PreferenceTally()
    for pair in pairs:
        tally.add(*pair)
    return tally.findings()


def lengths(longer, shorter, equal=0):
    """Return pairs of different prompts, of which so many have a longer and a shorter better answer."""
    tokens = [(9, 3)] * longer + [(3, 9)] * shorter + [(5, 5)] * equal
    return [(number, 1, 2, better, worse) for number, (better, worse) in enumerate(tokens)]


def test_pairs_in_both_orders_contradict_each_other():
    (finding,) = findings_of([(1, 10, 20, 5, 5), (1, 20, 10, 5, 5), (2, 10, 20, 5, 5)])
    assert str(finding) == (
        "1 pair of answers to one prompt occurs in both orders, so the two rows teach the opposite of each other; "
        "fix: keep the right order of each"
    )
    assert (finding.check, finding.is_warning) == ("contradicting pairs", True)
    both = [(prompt, *order, 5, 5) for prompt in (1, 2) for order in ((10, 20), (20, 10))]
    (finding,) = findings_of([*both, (3, 20, 10, 5, 5)])
    assert (finding.count, finding.text) == (
        *(2, "pairs of answers to one prompt occur in both orders, so their rows teach the opposite of each other"),
    )


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [(1, 10, 20, 5, 5)],
        [(1, 10, 20, 5, 5), (2, 20, 10, 5, 5)],  # another prompt
        [(1, 10, 20, 5, 5)] * 3,  # ``row_findings`` reports rows that repeat
        [(1, 10, 20, 5, 5), (1, 20, 30, 5, 5), (1, 10, 30, 5, 5)],  # an order of three answers
        [(1, 10, 20, 5, 5), (1, 20, 30, 5, 5), (1, 30, 10, 5, 5)],  # a circle is not the reverse of a pair
    ],
)
def test_pairs_that_agree_are_silent(pairs):
    assert findings_of(pairs) == []


def test_keys_may_be_any_whole_numbers():
    assert findings_of([(-1, 2**70, 20, 5, 5), (2, 10, 20, 5, 5)]) == []
    (finding,) = findings_of([(-1, 10, -20, 5, 5), (-1, -20, 10, 5, 5)])
    assert finding.check == "contradicting pairs"


@pytest.mark.parametrize(
    ("longer", "shorter", "words"),
    [
        (46, 14, "46 of 60 pairs whose answers differ in length have a longer better answer (77%)"),
        (10, 40, "40 of 50 pairs whose answers differ in length have a shorter better answer (80%)"),
        (50, 0, "50 of 50 pairs whose answers differ in length have a longer better answer (100%)"),
    ],
)
def test_better_answers_that_are_mostly_longer_or_shorter_are_a_warning(longer, shorter, words):
    (finding,) = findings_of(lengths(longer, shorter, equal=5))
    assert str(finding).startswith(f"{words}, so a model may learn length instead of quality; fix: add pairs")
    assert (finding.check, finding.is_warning) == ("length bias", True)


@pytest.mark.parametrize(
    ("longer", "shorter", "equal"), [(45, 15, 0), (15, 45, 0), (30, 30, 0), (49, 0, 0), (40, 0, 200), (0, 0, 100)]
)
def test_lengths_that_show_no_bias_are_silent(longer, shorter, equal):
    assert findings_of(lengths(longer, shorter, equal)) == []


def test_few_prompts_are_counted_without_a_warning():
    pairs = [(number % 12, number, number + 1000, 5, 5) for number in range(50)]
    (finding,) = findings_of(pairs)
    assert (finding.check, finding.count, finding.is_warning) == ("few prompts", 12, False)
    assert str(finding).startswith("12 different prompts for 50 pairs, 4.2 pairs a prompt; fix: add prompts")
    (finding,) = findings_of([(1, number, number + 1000, 5, 5) for number in range(50)])
    assert finding.text == "different prompt for 50 pairs, 50.0 pairs a prompt"
    assert findings_of([(number % 13, number, number + 1000, 5, 5) for number in range(50)]) == []
    assert findings_of([(1, number, number + 1000, 5, 5) for number in range(49)]) == []
