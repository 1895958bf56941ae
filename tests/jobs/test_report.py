"""The worker's report: one line an event, in one piece, readable while it is being written."""

import json
import math
import multiprocessing
from pathlib import Path

import pytest

from mlflow_finetune_plugin.jobs.report import Report, ReportReader


def test_events_come_back_as_they_were_said(tmp_path):
    report = Report(tmp_path / "report.jsonl")
    report.stage("train", "3 steps – fertig")
    report.progress(1, 3, "steps", stage="train", loss=2.5)
    report.metrics({"a": 1.0, "b": math.nan, "c": -math.inf}, step=2, model_id="m-1")
    first, second, third = ReportReader(tmp_path / "report.jsonl").new_events()
    assert (first["event"], first["name"], first["text"]) == ("stage", "train", "3 steps – fertig")
    assert (second["done"], second["total"], second["loss"]) == (1, 3, 2.5)
    assert third["values"] == {"a": 1.0, "b": "nan", "c": "-inf"}
    assert math.isnan(float(third["values"]["b"]))
    assert (third["step"], third["model_id"]) == (2, "m-1")
    assert first["time_ms"] <= third["time_ms"]


def test_every_line_is_strict_json(tmp_path):
    Report(tmp_path / "report.jsonl").metrics({"a": math.nan}, step=0)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    for line in (tmp_path / "report.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_reader_waits_for_the_end_of_a_line_and_keeps_its_place(tmp_path):
    path = tmp_path / "report.jsonl"
    reader = ReportReader(path)
    assert list(reader.new_events()) == []
    Report(path).note("one")
    half = json.dumps({"event": "note", "text": "ü"}, ensure_ascii=False).encode()
    with path.open("ab") as stream:
        stream.write(half[:-3])
    assert [event["text"] for event in reader.new_events()] == ["one"]
    offset = reader.offset
    assert list(reader.new_events()) == []
    with path.open("ab") as stream:
        stream.write(half[-3:] + b"\n")
    assert [event["text"] for event in reader.new_events()] == ["ü"]
    assert [event["text"] for event in ReportReader(path, offset).new_events()] == ["ü"]


def test_offset_stands_behind_each_event_as_it_is_yielded(tmp_path):
    """What was handed over and failed can be asked for again."""
    path = tmp_path / "report.jsonl"
    report = Report(path)
    for text in ("one", "two", "three"):
        report.note(text)
    reader = ReportReader(path)
    events = reader.new_events()
    assert next(events)["text"] == "one"
    assert [event["text"] for event in ReportReader(path, reader.offset).new_events()] == ["two", "three"]


def _write_many(path: Path, writer: int) -> None:
    report = Report(path)
    for i in range(200):
        report.note(f"{writer} {i} " + "x" * 2000)


def test_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "report.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, writer)) for writer in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    texts = [event["text"].split()[:2] for event in ReportReader(path).new_events()]
    assert len(texts) == 400
    for writer in ("0", "1"):
        assert [int(number) for who, number in texts if who == writer] == list(range(200))


@pytest.mark.fault
def test_full_disk_is_an_error_and_no_silence():
    with pytest.raises(OSError, match="No space left"):
        Report(Path("/dev/full")).note("lost")
