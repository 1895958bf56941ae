"""The mirror: every vote on both sides' traces, through outages and crashes, once for whoever reads."""

import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import votes_cast
from conftest import wait_for
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracing.client import TracingClient
from votes_cast import register_versions, vote

from mlflow_finetune_plugin.errors import TrackingError
from mlflow_finetune_plugin.votes import Journal, Mirror, read_votes
from mlflow_finetune_plugin.votes.journal.vote import prompt_digest
from mlflow_finetune_plugin.votes.mlflow.mirror import FlushResult
from mlflow_finetune_plugin.votes.mlflow.reading import read_texts
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")


def traces_of(ledger):
    client = TracingClient(ledger.uri)
    experiment = VoteTraces("bot", ledger.uri).experiment()
    return client.search_traces(locations=[experiment], order_by=["timestamp_ms ASC"])


def test_a_vote_stands_on_both_traces(ledger):
    ledger.journal.cast(vote(1, "right", voter="v-9", reasons=("clear",), comment="says it all"))
    assert Mirror(ledger.journal).flush().mirrored == 1
    traces = {trace.info.tags["finetune.version"]: trace for trace in traces_of(ledger)}
    assert set(traces) == {"1", "2"}
    values = {version: trace.info.assessments[0].feedback.value for version, trace in traces.items()}
    assert values == {"1": "lost", "2": "won"}
    won = traces["2"]
    assert won.data.spans[0].inputs == {"messages": [{"role": "user", "content": "question 1"}]}
    assert won.data.spans[0].outputs == "another, longer answer"
    assert {trace.info.tags["finetune.turn_id"] for trace in traces.values()} == {"t-1"}
    source = VoteTraces("bot").client.get_model_version("bot", "2").source
    assert f"models:/{won.info.trace_metadata['mlflow.modelId']}" == source
    feedback = won.info.assessments[0]
    assert (feedback.source.source_type, feedback.source.source_id) == ("HUMAN", "v-9")
    assert feedback.rationale == "says it all"
    told = feedback.metadata
    assert told["finetune.vote_id"] == vote(1, voter="v-9").vote_id
    assert told["finetune.shown_order"] == "left,right"
    assert json.loads(told["finetune.left"])["receipt"]["request_id"] == "req-1-l"


def test_a_change_replaces_the_feedback_it_changes(ledger):
    ledger.journal.cast(vote(1, "left"))
    mirror = Mirror(ledger.journal)
    mirror.flush()
    ledger.journal.cast(vote(1, "right"))
    mirror.flush()
    assert len(traces_of(ledger)) == 2
    for trace in traces_of(ledger):
        assert [(a.valid, a.metadata["finetune.revision"]) for a in trace.info.assessments] == [
            (False, "1"),
            (True, "2"),
        ]
    (read,) = read_votes("bot").votes
    assert (read.vote.choice, read.vote.revision, read.vote.first_sequence) == ("right", 2, 1)


@pytest.mark.fault
def test_mirrored_again_after_a_lost_mark_is_one_vote(ledger):
    for number in range(3):
        ledger.journal.cast(vote(number))
    Mirror(ledger.journal).flush()
    (ledger.journal.folder / "mirrored.json").unlink()
    assert Mirror(ledger.journal).flush().mirrored == 3
    assert len(traces_of(ledger)) == 6
    reading = read_votes("bot")
    assert len(reading.votes) == 3
    assert reading.copies == 3
    assert reading.not_counted == {}


def test_a_side_with_a_trace_of_its_own_keeps_it(ledger):
    experiment = VoteTraces("bot").ensure_experiment()
    own = VoteTraces("bot")
    there = own.write(vote("x").turn, vote("x").sides, 1_000, experiment)
    cast = vote(1)
    cast = replace(
        cast, sides=(replace(cast.sides[0], trace_id=there[0]), replace(cast.sides[1], trace_id="tr-" + "0" * 32))
    )
    ledger.journal.cast(cast)
    Mirror(ledger.journal).flush()
    (read,) = read_votes("bot").votes
    assert read.vote.left.trace_id == there[0]
    assert read.vote.right.trace_id != "tr-" + "0" * 32  # it is in no experiment: a new one was made
    assert len(traces_of(ledger)) == 3


def test_text_that_no_database_takes_is_mirrored_readable(ledger):
    ledger.journal.cast(vote(1, comment="a\0b \ud800", answers=("\0", "\ud83d"), question="why\0?"))
    assert Mirror(ledger.journal).flush().refused == 0
    (read,) = read_votes("bot").votes
    assert read.vote.comment == "a�b ?"
    text = read_texts("bot", [read.vote])[read.vote.left.trace_id]
    assert (text.messages[0]["content"], text.answer) == ("why�?", "�")
    assert prompt_digest(text.messages) == read.vote.prompt_digest


def test_what_the_server_refuses_is_set_aside_and_told_and_holds_up_no_other(ledger, caplog, monkeypatch):
    write = VoteTraces.write

    def refuse_first(self, turn, *more):
        if turn.turn_id == "t-1":
            raise MlflowException("too odd", INVALID_PARAMETER_VALUE)
        return write(self, turn, *more)

    monkeypatch.setattr(VoteTraces, "write", refuse_first)
    ledger.journal.cast(vote(1))
    ledger.journal.cast(vote(2))
    mirror = Mirror(ledger.journal)
    assert mirror.flush() == FlushResult(1, 1)
    assert "too odd" in ledger.journal.refusals(ledger.uri)[1]
    assert "refuses vote 1" in caplog.text
    assert mirror.pending == 0
    assert [entry.vote.turn.turn_id for entry in ledger.journal.entries()] == ["t-1", "t-2"]


@pytest.mark.fault
def test_server_away_keeps_votes_in_the_journal_and_says_so(ledger, impatient):
    ledger.journal.cast(vote(1))
    with pytest.raises(TrackingError, match="failed to read or write votes"):
        Mirror(ledger.journal, "http://127.0.0.1:9").flush()
    assert Mirror(ledger.journal, "http://127.0.0.1:9").pending == 1
    with pytest.raises(TrackingError, match="failed to read or write votes"):
        read_votes("bot", "http://127.0.0.1:9")


def test_a_deleted_experiment_is_told(ledger):
    ledger.journal.cast(vote(1))
    Mirror(ledger.journal).flush()
    traces = VoteTraces("bot")
    traces.client.delete_experiment(traces.experiment())
    ledger.journal.cast(vote(2))
    with pytest.raises(TrackingError, match="is deleted; fix: mlflow experiments restore"):
        Mirror(ledger.journal).flush()
    assert Mirror(ledger.journal).pending == 1


def test_a_trace_that_a_crash_left_without_its_text_is_completed_on_a_server_where_the_process_does_not_track(
    tmp_path, server, monkeypatch
):
    register_versions(server.uri)
    traces, cast = VoteTraces("bot", server.uri), vote(1)
    with monkeypatch.context() as crash:
        crash.setattr(traces.tracing, "log_spans", lambda *_: None)
        ids = traces.write(cast.turn, cast.sides, cast.cast_at_ms, traces.ensure_experiment())
    assert traces.texts(ids) == {}
    journal = Journal("bot", tmp_path / "votes")
    journal.cast(cast)
    assert Mirror(journal, server.uri).flush() == FlushResult(1, 0)
    assert [text.answer for text in traces.texts(ids).values()] == ["a short answer", "another, longer answer"]


@pytest.mark.fault
def test_no_vote_is_lost_or_doubled_when_the_server_goes_and_comes_back(tmp_path, server, caplog, impatient):
    register_versions(server.uri)
    journal = Journal("bot", tmp_path / "votes")
    mirror = Mirror(journal, server.uri, poll_s=0.1, longest_wait_s=1)
    mirror.start()
    try:
        for number in range(10):
            journal.cast(vote(number))
        wait_for(lambda: mirror.pending < 8, 180, "first votes in MLflow")
        server.stop()  # killed, perhaps in the middle of a vote
        for number in range(10, 20):
            journal.cast(vote(number))
        wait_for(lambda: mirror.fault, 30, "the outage told")
        server.start()
        wait_for(lambda: mirror.pending == 0, 180, "all votes in MLflow")
        wait_for(lambda: mirror.fault is None, 10, "the end of the outage")
    finally:
        assert mirror.stop()
    assert "stay in the journal" in caplog.text
    reading = read_votes("bot", server.uri)
    assert [read.vote.turn_id for read in reading.votes] == [f"t-{number}" for number in range(20)]
    assert reading.not_counted == {}


MIRRORING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from mlflow_finetune_plugin.votes import Journal, Mirror
print("begins", flush=True)
Mirror(Journal("bot", Path(sys.argv[1])), sys.argv[2]).flush()
"""


@pytest.mark.fault
@pytest.mark.process
def test_killed_while_mirroring_ends_with_every_vote_once(ledger):
    for number in range(60):
        ledger.journal.cast(vote(number))
    place = [str(ledger.journal.folder), ledger.uri, votes_cast.__file__]
    for _ in range(3):
        before = Mirror(ledger.journal).pending
        process = subprocess.Popen([sys.executable, "-c", MIRRORING, *place])
        wait_for(lambda before=before: Mirror(ledger.journal).pending < before - 5, 180, "votes in MLflow")
        process.send_signal(signal.SIGKILL)
        process.wait()
    Mirror(ledger.journal).flush()
    reading = read_votes("bot")
    assert [read.vote.turn_id for read in reading.votes] == [f"t-{number}" for number in range(60)]
    assert reading.not_counted == {}


@pytest.mark.process
def test_killed_while_casting_every_acknowledged_vote_is_in_mlflow_once(ledger):
    command = [sys.executable, votes_cast.__file__, str(ledger.journal.folder), "0", "100000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(20)]
    process.send_signal(signal.SIGKILL)
    told += [line for line in process.stdout.read().split() if len(line) == 36]
    process.wait()
    Mirror(Journal("bot")).flush()
    read = [vote.vote.vote_id for vote in read_votes("bot").votes]
    assert set(told) <= set(read)
    assert len(read) == len(set(read))


def test_a_stopped_mirror_can_still_flush(ledger):
    mirror = Mirror(ledger.journal, poll_s=0.05)
    mirror.start()
    assert mirror.stop()
    ledger.journal.cast(vote(1))
    time.sleep(0.2)
    assert mirror.pending == 1
    assert mirror.flush().mirrored == 1
    assert mirror.pending == 0


def test_damaged_last_lines_leave_nothing_pending(ledger, caplog):
    caplog.set_level(logging.ERROR)
    ledger.journal.cast(vote(1))
    with (ledger.journal.folder / "votes.jsonl").open("ab") as file:
        file.write(b"nonsense\n")
    mirror = Mirror(ledger.journal)
    mirror.flush()
    assert mirror.pending == 0
