"""Validation rows choose the weights: they come from the training rows, and neither train nor prove anything."""

import numpy as np
import pytest
from data_requests import held_out, jsonl, pairs, request

from mlflow_finetune_plugin.data import prepare
from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.data.report.contents import UnusableDataError


def texts(dataset, tokenizer):
    return {tokenizer.decode(ids) for ids in dataset["input_ids"]}


@pytest.mark.parametrize("eval_is_a_file", [False, True])
def test_each_row_is_trained_on_validates_or_is_held_out(tmp_path, renderer, byte_tokenizer, eval_is_a_file):
    small = request(
        jsonl(tmp_path / "a.jsonl", pairs(100)), held_out(tmp_path) if eval_is_a_file else 0.2, validation=0.25
    )
    prepared = prepare(small, renderer, tmp_path / "out")
    train, validation = (texts(rows, byte_tokenizer) for rows in (prepared.train, prepared.validation))
    proven = {byte_tokenizer.decode([*row.prompt_ids, *row.completion_ids]) for row in prepared.eval_rows}
    report, rest = prepared.report, 100 if eval_is_a_file else 80
    assert (len(train), len(validation)) == (rest * 3 // 4, rest // 4)
    assert not (train & validation)
    assert not (train & proven)
    assert not (validation & proven)
    assert (report.train_rows, report.validation_rows) == (len(train), len(validation))
    assert f"{len(validation)} for validation" in report.summary()
    assert (
        report.validation_split
        == f"0.25 of the rows that are left to train on, at most 500: {rest // 4} of {rest} rows"
    )


def test_the_held_out_rows_are_the_same_with_and_without_validation(tmp_path, renderer):
    file = jsonl(tmp_path / "a.jsonl", pairs(60))
    plain, chosen = (
        prepare(request(file, 0.2, validation=share), renderer, tmp_path / str(share)) for share in (None, 0.3)
    )
    assert plain.eval_rows == chosen.eval_rows
    assert plain.validation["input_ids"] != chosen.validation["input_ids"]
    assert plain.validation["input_ids"] == [[*row.prompt_ids, *row.completion_ids] for row in plain.eval_rows]


def test_duplicates_and_the_answers_of_a_prompt_stay_on_one_side(tmp_path, renderer, byte_tokenizer):
    rows = [*pairs(40), *pairs(40), *({**row, "completion": "another"} for row in pairs(40))]
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", rows), 0.2, validation=0.3), renderer, tmp_path / "out")
    prompts = [
        {text.partition("\n")[0] for text in texts(side, byte_tokenizer)}
        for side in (prepared.train, prepared.validation)
    ]
    assert min(map(len, prompts)) > 3
    assert not prompts[0] & prompts[1]


def test_what_validated_counts_as_seen_by_the_version(tmp_path, renderer):
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", pairs(50)), 0.2, validation=0.3), renderer, tmp_path / "out")
    assert len(prepared.trained_rows) == 40
    assert not np.isin([hash_eval_row(row, 0) for row in prepared.eval_rows], prepared.trained_rows).any()


def test_too_few_rows_end_with_what_to_do(tmp_path, renderer):
    with pytest.raises(
        UnusableDataError, match=r"no validation row: 1 usable .* fix: add rows, or leave out training\.load"
    ):
        prepare(request(jsonl(tmp_path / "a.jsonl", pairs(2)), 0.5, validation=0.3), renderer, tmp_path / "out")


def test_groups_stay_together(tmp_path, renderer, byte_tokenizer):
    rows = [{**row, "customer": f"c{i % 20}"} for i, row in enumerate(pairs(100))]
    small = request(jsonl(tmp_path / "a.jsonl", rows), 0.2, validation=0.25, group="customer")
    prepared = prepare(small, renderer, tmp_path / "out")
    customers = [
        {int(text.partition("What is ")[2].partition("?")[0]) % 20 for text in texts(side, byte_tokenizer)}
        for side in (prepared.train, prepared.validation)
    ]
    assert min(map(len, customers)) > 2
    assert not customers[0] & customers[1]
    assert not (customers[0] | customers[1]) & {int(row.group[1:]) for row in prepared.eval_rows}
