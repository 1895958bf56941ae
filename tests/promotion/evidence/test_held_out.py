"""What a run keeps of its held-out rows: read back as they were, and which of them are one draw."""

import json
from dataclasses import replace

import numpy as np
import pytest
from proven_versions import rows

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.clusters import group_clusters
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet, compare, load_metrics
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.gate.statistics.paired import PairedRows, paired_interval
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


def test_rows_of_one_group_are_one_draw():
    grouped = [replace(row(f"q{i}", line=i), group=group) for i, group in enumerate(["x", "x", "y", "z", "y"])]
    first, second, third, fourth, fifth = clusters(*grouped)
    assert first == second
    assert third == fifth
    assert len({first, third, fourth}) == 3
    assert read_held_out(held_out_json(grouped, ["f1"], 9), "bot/1").rows == tuple(grouped)
    plain = held_out_json([replace(member, group=None) for member in grouped], ["f1"], 9)
    assert "group" not in plain, "the digest of rows without groups stays as it was"


@pytest.mark.parametrize(("is_named", "least", "most"), [(False, 0.08, 1), (True, 0, 0.06)])
def test_equal_models_seldom_pass_where_the_groups_are_named(is_named, least, most):
    """20 customers of 10 rows, of which one model wins nearly all: 100 seeded draws of two equal models."""
    held_out = [replace(row(f"q{i}", line=i), group=str(i // 10) if is_named else None) for i in range(200)]
    names = clusters(*held_out)
    rng, passed = np.random.default_rng(7), {"gate": 0, "proof": 0}
    (exact_match,) = load_metrics(["exact_match"])
    for _ in range(100):
        differs, wins = rng.random(200) < 0.5, rng.random(200) < np.repeat(rng.beta(0.5, 0.5, 20), 10)
        right, left = (AnswerSet(["yes" if hit else "no" for hit in differs & w], np.ones(200)) for w in (wins, ~wins))
        result, scores = compare(exact_match, held_out, left, right, seed=0, clusters=group_clusters(held_out))
        passed["proof"] += result.gain.low > 0
        paired = PairedRows(
            tuple(map(str, range(200))),
            tuple(scores["adapter_exact_match"]),
            tuple(scores["base_exact_match"]),
            names,
        )
        passed["gate"] += paired_interval(paired, n_resamples=1000).low > 0
    assert all(least * 100 <= count <= most * 100 for count in passed.values()), passed


@pytest.mark.parametrize("groups", [1, 2, 5, 6])
def test_few_groups_show_nothing(groups):
    held_out = [replace(row(f"q{i}", line=i), group=str(i % groups)) for i in range(60)]
    for metric in load_metrics(["exact_match", "token_f1"]):
        sides = (AnswerSet([word if i % 7 else "?" for i in range(60)], np.ones(60)) for word in ("no", "yes"))
        result, _ = compare(metric, held_out, *sides, seed=0, clusters=group_clusters(held_out))
        assert (result.gain.low > 0) == (groups == 6)
        assert groups == 6 or result.gain.method == f"none: {groups} clusters are too few"


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
    held_out = rows(2)
    table = {
        "columns": ["reference", "adapter_answer", "adapter_nats_per_token"],
        "data": [["yes", "a", 0.5], ["yes", "b", 0.25]],
    }
    assert proof_answers(table, "adapter", held_out, "bot/1").nats.tolist() == [1.0, 0.5], "nats of the whole answer"
    for broken in ({**table, "data": table["data"][:1]}, {**table, "data": [["no", "a", 1.0]] * 2}, json.loads("{}")):
        with pytest.raises(GateError):
            proof_answers(broken, "adapter", held_out, "bot/1")


def test_a_table_of_answers_with_rewards_is_read_as_answers():
    held_out = rows(2)
    columns = ["reference", "adapter_answer", "adapter_nats_per_token", "adapter_reward"]
    table = {
        "columns": columns,
        "data": [[row.reference, "yes", 0.5, reward] for row, reward in zip(held_out, [2.0, None], strict=True)],
    }
    answers = proof_answers(table, "adapter", held_out, "bot/1")
    assert answers.answers == ["yes", "yes"]
    assert np.array_equal(answers.rewards["reward"], [2.0, np.nan], equal_nan=True)
