"""Rows that a candidate did not pass are counted, and the first of them shown."""

import numpy as np
from proven_versions import rows

from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.promotion.evidence.collection import missed_rows


def told(answers, asked):
    scores = [float(answer == row.reference) for answer, row in zip(answers, asked, strict=True)]
    return missed_rows("must-pass.jsonl", asked, AnswerSet(answers, np.zeros(len(answers))), scores, 1.0)


def test_nothing_is_told_of_rows_that_were_passed():
    assert told(["yes", "yes"], rows(2)) == []


def test_the_first_three_are_shown_and_all_are_counted():
    lines = told(["yes", "a", "b", "c", "d"], rows(5, "folder/must-pass.jsonl"))
    assert lines == [
        "must-pass.jsonl: 4 of 5 rows missed, the first ones:",
        "must-pass.jsonl line 2: 'question 1?' was answered 'a', not 'yes'",
        "must-pass.jsonl line 3: 'question 2?' was answered 'b', not 'yes'",
        "must-pass.jsonl line 4: 'question 3?' was answered 'c', not 'yes'",
    ]


def test_a_long_answer_is_cut_to_a_line():
    (_, line) = told([f"no\n{'o' * 200}"], rows(1))
    assert line == f"test.jsonl line 1: 'question 0?' was answered 'no {'o' * 54}...', not 'yes'"
