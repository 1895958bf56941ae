"""``data.group``: rows of one group are never on both sides of the split, and every record names their group."""

import pytest
from data_requests import jsonl, pairs, request

from mlflow_finetune_plugin.data import DataFile, UnusableDataError, prepare
from mlflow_finetune_plugin.errors import DataError


def customers(rows, size, start=0):
    return [{**row, "customer": f"c{i // size}"} for i, row in enumerate(pairs(rows, start))]


def sides(prepared, rows, tokenizer):
    """Return the groups of the trained rows and those of the held-out rows."""
    texts = [tokenizer.decode(ids) for ids in prepared.train["input_ids"]]
    trained = {row["customer"] for row in rows if any(row["prompt"] + "\n" in text for text in texts)}
    return trained, {row.group for row in prepared.eval_rows}


@pytest.mark.parametrize("seed", range(4))
def test_a_group_is_on_one_side(tmp_path, renderer, byte_tokenizer, seed):
    rows = customers(100, 5)
    train = jsonl(tmp_path / "a.jsonl", rows)
    prepared = prepare(request(train, 0.2, group="customer", seed=seed), renderer, tmp_path / "out")
    trained, held_out = sides(prepared, rows, byte_tokenizer)
    assert (len(trained), len(held_out)) == (16, 4)
    assert not trained & held_out
    assert prepared.report.eval_split == (
        f"0.2 of the training rows: 20 of 100 rows, 4 of 20 groups (customer), by a hash with seed {seed}; "
        "the rows of a group are on one side"
    )
    assert prepared.report.files[0].unused_columns == {}
    alone = prepare(request(train, 0.2, seed=seed, ignore=("customer",)), renderer, tmp_path / "alone")
    assert {row.group for row in alone.eval_rows} == {None}


def test_several_answers_of_a_row_are_of_its_group(tmp_path, renderer, byte_tokenizer):
    rows = [{**row, "completion": ["yes", "no"]} for row in customers(40, 4)]
    train = jsonl(tmp_path / "a.jsonl", rows)
    prepared = prepare(request(train, 0.2, group="customer"), renderer, tmp_path / "out")
    trained, held_out = sides(prepared, rows, byte_tokenizer)
    assert not trained & held_out
    assert len(prepared.eval_rows) == 16


def test_one_large_group_is_held_out_whole(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", customers(30, 10))
    prepared = prepare(request(train, 0.1, group="customer"), renderer, tmp_path / "out")
    assert len(prepared.eval_rows) == 10
    assert "10 of 30 rows, more than asked because they are one group, 1 of 3 groups" in prepared.report.eval_split


def test_rows_of_one_group_alone_cannot_be_split(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", customers(30, 30))
    with pytest.raises(UnusableDataError, match=r"all rows are of one group \(customer\); fix: set data\.eval"):
        prepare(request(train, 0.1, group="customer"), renderer, tmp_path / "out")


def test_files_that_share_a_group_stop_the_run(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", customers(20, 5))
    shared = (DataFile(jsonl(tmp_path / "b.jsonl", customers(4, 2, start=900)), "t"),)
    with pytest.raises(UnusableDataError, match=r"2 groups \(customer\) are in data\.train and in data\.eval, .* 'c0'"):
        prepare(request(train, shared, group="customer"), renderer, tmp_path / "out")
    apart = [{**row, "customer": f"other {row['customer']}"} for row in customers(4, 2, start=900)]
    files = (DataFile(jsonl(tmp_path / "c.jsonl", apart), "t"),)
    report = prepare(request(train, files, group="customer"), renderer, tmp_path / "out").report
    assert report.eval_split.endswith("; they are 2 groups (customer)")


def test_a_column_that_the_file_does_not_have_is_refused(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", customers(20, 5))
    with pytest.raises(
        DataError, match=r"a\.jsonl: data\.group: the file has no column 'costumer'; did you mean 'custom"
    ):
        prepare(request(train, group="costumer"), renderer, tmp_path / "out")


def test_a_row_without_a_group_is_left_out(tmp_path, renderer):
    rows = customers(40, 4)
    rows[3]["customer"] = None
    train = jsonl(tmp_path / "a.jsonl", rows)
    report = prepare(request(train, group="customer"), renderer, tmp_path / "out").report
    (skip,) = report.files[0].skipped
    assert (skip.reason, skip.lines, skip.detail) == ("null field", (4,), "customer, which data.group names")
