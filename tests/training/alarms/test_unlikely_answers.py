"""Better answers that the model before training finds far less likely than the worse ones, and pairs where it does not."""

import numpy as np
import pytest
from training.trained import events, logged

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.training.alarms import report_unlikely_answers


def notes_on(folder, pairs):
    folder.mkdir(parents=True, exist_ok=True)
    report_unlikely_answers(np.array(pairs, dtype=np.float64), Report(folder / "report.jsonl"))
    return [event["text"] for event in events(folder, "note")]


def test_mostly_unlikely_better_answers_are_noted_with_share_and_means(tmp_path):
    (note,) = notes_on(tmp_path, [(6.0, 1.0)] * 12 + [(2.0, 1.0)] * 8)
    assert "in 60% of the pairs it finds the better answer less likely than the worse one" in note
    assert "(means 4.4 and 1.0)" in note
    assert "fix: train on the better answers first" in note
    assert [value for _, value in logged(tmp_path, "train/reference_chosen_nats")] == pytest.approx([4.4])
    assert [value for _, value in logged(tmp_path, "train/reference_rejected_nats")] == pytest.approx([1.0])


@pytest.mark.parametrize(
    "pairs",
    [
        [(1.0, 3.0)] * 20,
        [(3.9, 2.0)] * 20,  # less likely, and not by much
        [(6.0, 1.0)] * 10 + [(1.0, 6.0)] * 10,  # half of them
        [(9.0, 9.0)] * 20,  # both sides are new to the model
        [(6.0, 1.0)] * 9,  # too few to tell
    ],
)
def test_usual_pairs_are_silent(tmp_path, pairs):
    assert notes_on(tmp_path, pairs) == []
