import json
from dataclasses import replace

import pytest
from data_requests import held_out, jsonl, pairs, request

from mlflow_finetune_plugin.data.preparation import prepare
from mlflow_finetune_plugin.data.report.contents import DataReport, SkipCount, UnusableDataError
from mlflow_finetune_plugin.data.report.text import report_text
from mlflow_finetune_plugin.data.tokens.token_report import token_report


@pytest.fixture
def report(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", pairs(20))
    return prepare(request(train, held_out(tmp_path)), renderer, tmp_path / "out").report


def test_good_data_is_called_good(report):
    assert report.summary() == f"good: 20 rows to train on, {report.eval_rows} held out; none skipped, no duplicates"
    assert report.summary(is_evaluation=True) == "good: 1 row to evaluate; none skipped, no duplicates"


def test_summary_mentions_the_learnt_share_only_when_it_is_low(report):
    low = replace(report, train=token_report({1000: 10}, 20), eval=token_report({}, 0))
    assert "only 0.2% of the tokens are answers to learn from, the rest is prompt" in low.summary()
    assert "tokens" not in report.summary()


def test_cut_answers_are_warnings_with_a_fix(report):
    cut = replace(report, truncated_end_of_turn=1)
    assert cut.summary().startswith("usable with 1 warning: ")
    assert cut.warnings[0].startswith("1 example lost the end-of-turn token because max_length is ")
    assert cut.warnings[0].endswith("; fix: raise training.max_length, or set data.overlength: drop")


def test_unusable_data_is_called_unusable(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "completion": ""}] * 3)
    with pytest.raises(UnusableDataError) as error:
        prepare(request(train, held_out(tmp_path)), renderer, tmp_path / "out")
    assert error.value.report.summary().startswith("unusable: 0 rows to train on, ")
    assert error.value.report.fault == str(error.value)


def test_text_starts_with_the_verdict_and_the_warnings(report):
    lines = report_text(replace(report, truncated_answer=2)).splitlines()
    assert lines[0].startswith("data   usable with 1 warning: ")
    assert lines[1].startswith("WARN   2 answers were cut off entirely ")
    assert lines[2] == ""


def test_a_report_written_to_json_reads_back_equal(report):
    assert DataReport.from_json(json.dumps(report.to_json())) == report


def test_json_keeps_the_keys_of_earlier_versions(report):
    contents = report.to_json()
    assert contents["kept"] == report.rows_used
    assert [file["kept"] for file in contents["files"]] == [file.rows_used for file in report.files]


def test_rows_over_max_length_are_counted_once(report):
    skipped = replace(report.files[0], skipped=(SkipCount("over length", 3, (1, 2, 3), "40 tokens"),))
    dropped = replace(report, files=(skipped,), over_length=3, overlength="drop")
    assert dropped.summary().endswith("; 3 skipped (3 over length), no duplicates")
    assert "3 over length (first: 40 tokens), lines 1, 2, 3" in report_text(dropped)
    cut = replace(report, over_length=2, overlength="truncate")
    assert cut.summary().endswith("; none skipped, no duplicates, 2 longer than max_length (truncate)")
