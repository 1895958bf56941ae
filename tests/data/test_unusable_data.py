"""Data that cannot be used: every error names the files, the lines and the fix."""

import pytest
from data_requests import held_out, jsonl, pairs, request

from mlflow_finetune_plugin.data import DataFile, UnusableDataError, prepare
from mlflow_finetune_plugin.errors import DataError


def test_preference_pairs_are_refused_by_name(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}])
    with pytest.raises(
        DataError, match=r"a\.jsonl: preference: prompt, chosen, rejected: preference pairs cannot be used for training"
    ):
        prepare(request(train), renderer, tmp_path / "out")


def test_held_out_rows_of_another_form_have_a_fix_of_their_own(tmp_path, renderer):
    """As if a recipe for answers got ``-P data=pairs.jsonl`` alone."""
    sides = [{"prompt": f"p {i}", "chosen": f"c {i}", "rejected": "r"} for i in range(20)]
    train = jsonl(tmp_path / "a.jsonl", sides)
    with pytest.raises(
        DataError, match=r"eval\.jsonl: .* learns from pairs .*; or hold out .* training rows: -P data.eval=0.1$"
    ):
        prepare(request(train, held_out(tmp_path), form="pairs"), renderer, tmp_path / "out")
    with pytest.raises(DataError, match=r"b\.jsonl: .*, or compose the prompt with data.prompt_template$"):
        prepare(request(jsonl(tmp_path / "b.jsonl", pairs(20)), form="pairs"), renderer, tmp_path / "b")
    assert prepare(request(train, 0.1, form="pairs"), renderer, tmp_path / "c").report.eval_rows


def test_skipped_rows_and_findings_show_an_example(tmp_path, renderer):
    rows = [{"prompt": "Why?", "completion": ""}, *pairs(9), {"prompt": "What is 3?", "completion": "It is 3."}]
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", rows), held_out(tmp_path)), renderer, tmp_path / "out")
    (skip,) = prepared.report.files[0].skipped
    assert skip.example == '{"prompt": "Why?", "completion": ""}'
    (finding,) = prepared.report.findings
    assert (finding.check, finding.places, finding.example) == (
        *("duplicates", ("a.jsonl line 11",), "What is 3?\nIt is 3.<|endoftext|>"),
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eval.arrow", "train.arrow"]


# nothing usable ------------------------------------------------------------------------------------------------------


def test_no_usable_row_gives_reasons_and_lines(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}] * 3)
    with pytest.raises(DataError, match=r"no usable row to train on: a\.jsonl: 3 empty completion .* in line 1, 2, 3"):
        prepare(request(train, held_out(tmp_path)), renderer, tmp_path / "out")


def test_no_usable_eval_row(tmp_path, renderer):
    bad = jsonl(tmp_path / "bad.jsonl", [{"prompt": None, "completion": "x"}])
    with pytest.raises(DataError, match=r"no usable row to evaluate on: bad\.jsonl: 1 null field"):
        prepare(request(jsonl(tmp_path / "a.jsonl", pairs(3)), (DataFile(bad, "t"),)), renderer, tmp_path / "out")


def test_one_row_cannot_be_split(tmp_path, renderer):
    with pytest.raises(DataError, match=r"1 usable training row\(s\) are too few to hold one out"):
        prepare(request(jsonl(tmp_path / "a.jsonl", pairs(1))), renderer, tmp_path / "out")


def test_too_large_a_share_of_unusable_rows_stops_the_run(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", [*pairs(16), *[{"prompt": "Why?", "completion": ""}] * 4])
    with pytest.raises(UnusableDataError) as caught:
        prepare(request(train, max_skipped=0.1), renderer, tmp_path / "out")
    assert str(caught.value).startswith(
        "4 of 20 rows of a.jsonl cannot be used (20%; data.max_skipped allows 10%): 4 empty completion (completion) in line 17"
    )
    assert str(caught.value).endswith("data.max_skipped: 0.2 (-P data.max_skipped=0.2)")
    assert caught.value.report.verdict == "unusable"
    assert prepare(request(train, max_skipped=0.2), renderer, tmp_path / "out").report.skipped == 4


def test_rows_that_a_setting_leaves_out_are_not_unusable(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", [*pairs(10), *({"prompt": f"{i} " * 50, "completion": "x"} for i in range(10))])
    settings = {"overlength": "drop", "max_length": 40, "max_skipped": 0.0}
    assert prepare(request(train, **settings), renderer, tmp_path / "out").report.skipped == 10


def test_answers_of_a_prompt_are_on_one_side(tmp_path, renderer):
    rows = [{"prompt": f"What is {i % 20}?", "completion": f"It is {i}."} for i in range(60)]
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", rows)), renderer, tmp_path / "out")
    assert (prepared.report.eval_rows, prepared.report.leaked_prompts) == (12, 0)


def test_broken_file_raises_before_anything_is_written(tmp_path, renderer):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "completion": "c"}\n{"prompt": "p", "comp')
    with pytest.raises(DataError, match="line 2: the last line is incomplete"):
        prepare(request(tmp_path / "a.jsonl"), renderer, tmp_path / "out")


def test_unknown_layout_names_the_file(tmp_path, renderer):
    with pytest.raises(DataError, match=r"a\.jsonl: the columns x fit no known layout"):
        prepare(request(jsonl(tmp_path / "a.jsonl", [{"x": 1}])), renderer, tmp_path / "out")


@pytest.mark.parametrize("fraction", [0.0, 1.0, 1.5, -0.1])
def test_eval_fraction_lies_between_0_and_1(tmp_path, renderer, fraction):
    with pytest.raises(DataError, match="is not a fraction between 0 and 1"):
        prepare(request(jsonl(tmp_path / "a.jsonl", pairs(5)), fraction), renderer, tmp_path / "out")
