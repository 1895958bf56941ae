"""Rows as OpenAI, Axolotl, ms-swift, LLaMA-Factory, TRL and the hub's data sets write them: used as they mean it, or refused by name."""

import csv
import json

import pytest
from data_requests import jsonl, pairs, request

from mlflow_finetune_plugin.data import DataFile, DataReport, prepare, report_page, report_text
from mlflow_finetune_plugin.errors import DataError

SYSTEM, USER, ASSISTANT = ({"role": r, "content": f"{r}."} for r in ("system", "user", "assistant"))


def trained_text(prepared, tokenizer):
    """Return each example as text with what carries loss in brackets."""
    return [
        "".join(f"[{part['text']}]" if part["carries_loss"] else part["text"] for part in sample)
        for sample in prepared.report.mask_samples
    ]


def test_valid_rows_of_openai_are_all_used(tmp_path, renderer, byte_tokenizer):
    conversations = [
        [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}],
        [{**USER, "content": [{"type": "text", "text": "parts"}]}, ASSISTANT],
        [ASSISTANT, USER, ASSISTANT],
        [USER, USER, ASSISTANT],
        [USER, SYSTEM, ASSISTANT],
    ]
    train = jsonl(tmp_path / "a.jsonl", [{"messages": turns} for turns in conversations])
    held_out = request(train).train
    prepared = prepare(request(train, held_out), renderer, tmp_path / "out")
    assert prepared.report.skipped == 0
    end = "<|endoftext|>"
    assert trained_text(prepared, byte_tokenizer) == [
        f"user.\nassistant.{end}user.\n[assistant.{end}]",
        f"parts\n[assistant.{end}]",
        f"assistant.{end}user.\n[assistant.{end}]",
        f"user.\nuser.\n[assistant.{end}]",
        f"user.\nsystem.\n[assistant.{end}]",
    ]
    assert [note for note in prepared.report.notes if "4 assistant turns are context" in note]  # two on each side
    assert all("weight" not in turn for row in prepared.eval_rows for turn in row.messages)


def test_report_counts_answers_that_are_no_text(tmp_path, renderer):
    rows = [{"prompt": f"{i} + {i}", "completion": 2 * i if i % 2 else {"sum": 2 * i}} for i in range(1, 21)]
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", rows)), renderer, tmp_path / "out")
    note = "20 answers are numbers, booleans or objects, and were written as text (an object as JSON)"
    assert note in prepared.report.notes
    assert {row.reference for row in prepared.eval_rows} <= {
        *(str(2 * i) for i in range(1, 21, 2)),
        *(json.dumps({"sum": 2 * i}) for i in range(2, 21, 2)),
    }


@pytest.mark.parametrize("name", ["messages", "talk"])
def test_json_texts_in_the_cells_of_a_csv_file_are_turns(tmp_path, renderer, name):
    rows = [[USER, {**ASSISTANT, "content": f"answer {i}"}] for i in range(20)]
    train = tmp_path / "a.csv"
    with train.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", name])
        writer.writerows([i, json.dumps(turns)] for i, turns in enumerate(rows))
    columns = {} if name == "messages" else {"messages": name}
    prepared = prepare(request(train, columns=columns), renderer, tmp_path / "out")
    assert prepared.report.files[0].layout == f"messages: {name}"
    assert prepared.report.skipped == 0
    assert all(row.reference.startswith("answer ") for row in prepared.eval_rows)


def test_a_translation_needs_its_direction(tmp_path, renderer):
    rows = [{"id": str(i), "translation": {"en": f"house {i}", "fr": f"maison {i}"}} for i in range(20)]
    train = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        DataError, match=r"direction is not clear; fix: data\.columns: {prompt: translation\.en, completion"
    ) as caught:
        prepare(request(train), renderer, tmp_path / "out")
    assert "-P data.columns.prompt=translation.en -P data.columns.completion=translation.fr" in str(caught.value)
    columns = {"prompt": "translation.fr", "completion": "translation.en"}
    prepared = prepare(request(train, columns=columns), renderer, tmp_path / "out")
    assert all(row.reference.startswith("house ") for row in prepared.eval_rows)
    assert prepared.report.files[0].unused_columns == {"id": 20}
    template = "English: {{ row['translation.fr'] }}"
    composed = request(train, columns={"completion": "translation.en"}, prompt_template=template)
    assert (
        prepare(composed, renderer, tmp_path / "out").eval_rows[0].messages[0]["content"].startswith("English: maison")
    )


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "p"}, "prompts without answers"),
        ({"prompt": [USER], "source": "s"}, "prompts without answers"),
        ({"prompt": [USER], "reward_model": {"ground_truth": "7"}, "data_source": "d"}, "prompts without answers"),
        ({"segments": [{"label": True, "text": "a"}]}, "'segments' holds text in the form of a prompt format"),
        ({"prompt": "p", "completions": ["a", "b"], "labels": [True, False]}, "rate the steps of an answer"),
    ],
)
def test_rows_without_an_answer_for_a_chat_are_refused_with_the_reason(tmp_path, renderer, row, reason):
    with pytest.raises(DataError, match=reason):
        prepare(request(jsonl(tmp_path / "a.jsonl", [row] * 20)), renderer, tmp_path / "out")


def test_unused_columns_are_in_every_form_of_the_report(tmp_path, renderer):
    rows = [{**row, "id": i, "note": "seldom" if i < 3 else None} for i, row in enumerate(pairs(20))]
    report = prepare(request(jsonl(tmp_path / "a.jsonl", rows)), renderer, tmp_path / "out").report
    assert report.files[0].unused_columns == {"id": 20, "note": 3}
    assert "columns that are not used: id (20 rows), note (3 rows)" in report_text(report)
    assert "<code>note</code> (3)" in report_page(report)
    assert DataReport.from_json(json.dumps(report.to_json())).files == report.files


def test_a_column_that_carries_the_task_stops_the_run_until_a_setting_decides(tmp_path, renderer, byte_tokenizer):
    rows = [{**row, "context": f"Fact {i}."} for i, row in enumerate(pairs(20))]
    train = jsonl(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl: the column 'context' is not used"):
        prepare(request(train), renderer, tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.jsonl: the column 'context' is not used"):  # in later rows only
        prepare(request(jsonl(tmp_path / "a.jsonl", [*pairs(60, 50), *rows])), renderer, tmp_path / "out")
    train = jsonl(tmp_path / "a.jsonl", rows)
    for files in (request(train, ignore=("context",)), request((DataFile(train, "t", ignore=("context",)),))):
        assert prepare(files, renderer, tmp_path / "out").report.files[0].unused_columns == {}
    template = "{{ context }} {{ prompt }}"
    for files in (request(train, prompt_template=template), request((DataFile(train, "t", prompt_template=template),))):
        prepared = prepare(files, renderer, tmp_path / "out")
        assert byte_tokenizer.decode(prepared.train[0]["input_ids"]).startswith("Fact ")
        assert prepared.report.files[0].layout == "prompt_completion: data.prompt_template -> completion"


def test_report_names_an_unusual_separator_and_encoding(tmp_path, renderer):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt;completion\n" + "".join(f"Où {i}?;là\n" for i in range(12)).encode("cp1252"))
    report = prepare(request(path), renderer, tmp_path / "out").report
    assert [note for note in report.notes if note.startswith("a.csv")] == [
        "a.csv: the columns are separated by semicolons",
        "a.csv: the encoding is Windows-1252, because line 2 is not UTF-8",
    ]
