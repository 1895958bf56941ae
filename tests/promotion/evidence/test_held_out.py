"""What a run keeps of its held-out rows: read back as they were, and which of them are one draw."""

import json

import numpy as np
import pytest
from proven_versions import rows

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.promotion.evidence.held_out import file_digest, held_out_json, proof_answers, read_held_out


def test_rows_come_back_as_they_were(tmp_path):
    kept = rows(3)
    mine = tmp_path / "mine.py"
    mine.write_text("mine")
    found = read_held_out(held_out_json(kept, ["exact_match", str(mine)], 9), "bot/1")
    assert found.rows == tuple(kept)
    assert found.metrics == {"exact_match": None, "mine.py": file_digest(mine)}
    assert read_held_out(held_out_json(kept, ["f1"], 9), "bot/1").digest == found.digest, "of the rows alone"
    assert read_held_out(held_out_json(kept, ["f1"], 10), "bot/1").digest != found.digest, "and of the answers' room"
    assert read_held_out(held_out_json(kept[:2], ["f1"], 9), "bot/1").digest != found.digest


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"rows": [], "metrics": [], "max_new_tokens": 1}', '{"rows": [{}], "metrics": ["f1"]}']
)
def test_what_is_none_is_refused(text):
    with pytest.raises(GateError, match=r"bot/1.*fix: train it again"):
        read_held_out(text, "bot/1")


def row(question, source="a.jsonl", line=1):
    messages = ({"role": "user", "content": question},) if question else ()
    return EvalRow(messages, (1,), (2,), "yes", "t", source, line)


def clusters(*found):
    return read_held_out(held_out_json(found, ["f1"], 9), "bot/1").clusters


def test_rows_that_share_a_question_or_a_place_are_one_draw():
    assert clusters(row("a", line=1), row("b", line=2)) is None
    first, second, third = clusters(row("a", line=1), row("a", line=2), row("b", line=3))
    assert first == second != third
    cut = clusters(row("a", line=1), row("b", line=1), row("b", line=9), row("c", line=4))
    assert len(set(cut)) == 2, "b joins the two places, c stands alone"


def test_plain_text_is_drawn_by_its_places():
    assert clusters(row("", line=1), row("", line=2)) is None
    assert len(set(clusters(row("", line=1), row("", line=1), row("", line=2)))) == 2


def test_a_metric_of_sums_resamples_draws_not_rows():
    """Each of 20 questions asked five times and answered alike: a hundred rows that know as much as twenty."""
    asked = [row(f"q{i}", line=i) for i in range(20) for _ in range(5)]
    right = [bool(i % 2) for i in range(20) for _ in range(5)]
    base = AnswerSet(["no"] * 100, np.ones(100))
    adapter = AnswerSet(["yes" if one else "no" for one in right], np.ones(100))
    (f1,) = load_metrics(["token_f1"])
    alone, _ = compare(f1, asked, base, adapter, seed=0)
    drawn, _ = compare(f1, asked, base, adapter, seed=0, clusters=[one.line for one in asked])
    assert drawn.gain.value == pytest.approx(alone.gain.value)
    assert drawn.gain.high - drawn.gain.low > 1.8 * (alone.gain.high - alone.gain.low)


def test_a_table_of_other_rows_is_refused():
    kept = rows(2)
    table = {
        "columns": ["reference", "adapter_answer", "adapter_nats_per_token"],
        "data": [["yes", "a", 0.5], ["yes", "b", 0.25]],
    }
    assert proof_answers(table, "adapter", kept, "bot/1").nats.tolist() == [1.0, 0.5], "nats of the whole answer"
    for broken in ({**table, "data": table["data"][:1]}, {**table, "data": [["no", "a", 1.0]] * 2}, json.loads("{}")):
        with pytest.raises(GateError):
            proof_answers(broken, "adapter", kept, "bot/1")
