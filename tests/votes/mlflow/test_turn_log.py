"""Every turn is in MLflow, a trace per side, before anybody votes, through outages and crashes; a vote finds it."""

import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import votes_cast
from conftest import wait_for
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from votes_cast import NOON_MS, receipt, register_versions, spoken, vote

from mlflow_finetune_plugin.votes import Journal, Mirror, read_votes
from mlflow_finetune_plugin.votes.mlflow.answer_trace import STOPPED, TracedAnswer
from mlflow_finetune_plugin.votes.mlflow.reading import read_texts
from mlflow_finetune_plugin.votes.mlflow.traces import TracedTurn, VoteTraces
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog

pytestmark = pytest.mark.store


@pytest.fixture
def log(ledger):
    made = TurnLog(ledger.journal, ledger.uri)
    made.start()
    yield made
    made.stop(5)


def noted(log, *casts, voter="v-1"):
    for cast in casts:
        assert log.note(cast.turn, spoken(cast), voter)
    assert log.flush(60), log.fault


def traces_by_side(uri=None):
    """By turn and version, ``TURN VERSION``."""
    traces = VoteTraces("bot", uri)
    found = traces.tracing.search_traces(locations=[traces.experiment()], max_results=500)
    return {f"{trace.info.tags['finetune.turn_id']} {trace.info.tags['finetune.version']}": trace for trace in found}


def test_a_turn_is_two_traces_with_all_that_is_known_of_it(ledger, log):
    cast = vote(1)
    said = spoken(
        cast,
        sampling={"temperature": 0.5, "seed": 7},
        first_token_ms=125.5,
        prompt_tokens=11,
        completion_tokens=48,
        finish_reason="stop",
        system_prompt="Be brief.",
    )
    assert log.note(cast.turn, said, "v-9")
    assert log.flush(60)
    traces = traces_by_side()
    assert set(traces) == {"t-1 1", "t-1 2"}
    left = traces["t-1 1"]
    assert left.info.request_time == NOON_MS - 60_000
    assert left.info.execution_duration == 2_500
    assert left.info.state == "OK"
    assert left.info.trace_metadata["mlflow.trace.user"] == "v-9"
    assert left.info.trace_metadata["mlflow.trace.session"] == "s-v-1"
    source = VoteTraces("bot").client.get_model_version("bot", "1").source
    assert f"models:/{left.info.trace_metadata['mlflow.modelId']}" == source
    assert left.info.token_usage == {"input_tokens": 11, "output_tokens": 48, "total_tokens": 59}
    assert left.info.tags["finetune.finish_reason"] == "stop"
    assert "finetune.shown_left" not in left.info.tags
    (span,) = left.data.spans
    assert span.inputs == {
        "messages": [{"role": "user", "content": "question 1"}],
        "model": "bot@champion",
        "system_prompt": "Be brief.",
        "temperature": 0.5,
        "seed": 7,
    }
    assert span.outputs == "a short answer"
    assert span.get_attribute("finetune.time_to_first_token_ms") == 125.5
    assert span.get_attribute("finetune.sampling") == {"temperature": 0.5, "seed": 7}
    assert span.get_attribute("finetune.receipt") == vars(receipt("1", "req-1-l"))
    assert [(event.name, event.timestamp) for event in span.events] == [
        ("first_token", (NOON_MS - 60_000) * 1_000_000 + 125_500_000)
    ]
    assert traces["t-1 2"].info.token_usage is None  # its endpoint counts none


def test_a_failed_side_says_why_and_a_stopped_one_that_it_was(ledger, log):
    cast = vote(1)
    failed = replace(cast.sides[0], answer="half an ans")
    left = TracedAnswer(failed, NOON_MS, NOON_MS + 10, fault="the endpoint broke off")
    right = TracedAnswer(cast.sides[1], NOON_MS, NOON_MS + 10, finish_reason=STOPPED)
    log.note(cast.turn, [left, right])
    assert log.flush(60)
    traces = traces_by_side()
    assert traces["t-1 1"].info.state == "ERROR"
    assert traces["t-1 1"].data.spans[0].status.description == "the endpoint broke off"
    assert traces["t-1 1"].data.spans[0].outputs == "half an ans"
    assert traces["t-1 2"].info.state == "OK"
    assert traces["t-1 2"].info.tags["finetune.finish_reason"] == "stopped"


def test_a_vote_hangs_on_the_turns_own_traces_and_leaves_them_as_they_are(ledger, log):
    cast = vote(1, "right")
    noted(log, cast, vote(2), voter="v-9")
    before = traces_by_side()
    ledger.journal.cast(cast)
    Mirror(ledger.journal).flush()
    after = traces_by_side()
    assert set(after) == set(before)
    assert {trace.info.trace_id for trace in after.values()} == {trace.info.trace_id for trace in before.values()}
    for name, trace in after.items():
        assert trace.info.request_time == NOON_MS - 60_000
        assert trace.info.execution_duration == before[name].info.execution_duration
        assert trace.data.spans[0].to_dict() == before[name].data.spans[0].to_dict()
    assert after["t-1 1"].info.trace_metadata["mlflow.trace.user"] == "v-9"
    marks = {name: trace.info.tags.get("finetune.shown_left") for name, trace in after.items()}
    assert marks == {"t-1 1": "true", "t-1 2": None, "t-2 1": None, "t-2 2": None}
    (read,) = read_votes("bot").votes
    assert read.vote.winner.version == "2"
    assert read_texts("bot", [read.vote])[read.vote.left.trace_id].answer == "a short answer"


def test_a_turn_that_is_written_after_its_vote_adds_what_the_vote_did_not_know(ledger, log):
    cast = vote(1, "right", voter="v-9")
    ledger.journal.cast(cast)
    Mirror(ledger.journal).flush()
    assert traces_by_side()["t-1 1"].info.request_time == NOON_MS
    noted(log, cast, voter="v-9")
    left = traces_by_side()["t-1 1"]
    assert (left.info.request_time, left.info.execution_duration) == (NOON_MS - 60_000, 2_500)
    assert left.info.tags["finetune.shown_left"] == "true"
    assert [feedback.value for feedback in left.info.assessments] == ["lost"]
    assert len(traces_by_side()) == 2
    assert len(read_votes("bot").votes) == 1


def test_what_no_database_takes_does_not_stop_the_log(ledger, log):
    cast = vote(1, answers=("\0 \ud83d", "b"), question="why\0?")
    left, right = spoken(cast, sampling={"stop": ["\ud800"], "odd": object()}, finish_reason="\0", fault="\ud800")
    log.note(cast.turn, [left, right], "v-\ud800")
    assert log.flush(60)
    assert traces_by_side()["t-1 1"].data.spans[0].outputs == "� ?"
    assert (log.lost, log.fault) == (0, None)


def test_a_full_log_says_what_it_does_not_keep_and_loses_no_vote(ledger, caplog):
    log = TurnLog(ledger.journal, most_turns=2)
    assert [log.note(vote(n).turn, spoken(vote(n))) for n in range(4)] == [True, True, False, False]
    assert (log.pending, log.lost) == (2, 2)
    assert caplog.text.count("a turn is dropped") == 1
    ledger.journal.cast(vote(3))
    log.start()
    assert log.flush(60)
    assert log.stop()
    Mirror(ledger.journal).flush()
    assert set(traces_by_side()) == {"t-0 1", "t-0 2", "t-1 1", "t-1 2", "t-3 1", "t-3 2"}
    assert log.note(vote(5).turn, spoken(vote(5))) is False
    assert log.lost == 3
    few = TurnLog(ledger.journal, most_chars=100)
    assert not few.note(vote(6, question="x" * 99).turn, spoken(vote(6)))


def test_noting_does_not_wait_for_who_writes_or_forgets(ledger, log):
    with ledger.journal.mirroring():
        start = time.monotonic()
        for number in range(100):
            log.note(vote(number).turn, spoken(vote(number)))
        assert time.monotonic() - start < 1
        assert not log.flush(0.3)
    assert log.pending == 100


@pytest.mark.parametrize("code", [INVALID_PARAMETER_VALUE, INTERNAL_ERROR])
def test_a_turn_that_mlflow_never_takes_holds_up_no_other(ledger, monkeypatch, caplog, code):
    record = VoteTraces.record

    def refuse_one(self, turns, experiment_id):
        if any(one.turn.turn_id == "t-1" for one in turns):
            raise MlflowException("too odd", code)
        return record(self, turns, experiment_id)

    monkeypatch.setattr(VoteTraces, "record", refuse_one)
    log = TurnLog(ledger.journal, longest_wait_s=0.1)
    for number in range(3):
        log.note(vote(number).turn, spoken(vote(number)))
    log.start()
    assert log.flush(60)
    assert log.stop()
    assert {name[:3] for name in traces_by_side()} == {"t-0", "t-2"}
    assert log.lost == 1
    assert "t-1 has no trace" in caplog.text


@pytest.mark.fault
def test_a_server_that_is_away_at_the_end_costs_the_traces_and_says_how_many(ledger, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    log = TurnLog(ledger.journal, "http://127.0.0.1:9")
    log.start()
    for number in range(3):
        log.note(vote(number).turn, spoken(vote(number)))
    wait_for(lambda: log.fault, 30, "the outage told")
    assert "failed to read or write votes" in log.fault
    start = time.monotonic()
    assert log.stop(1)
    assert time.monotonic() - start < 5
    assert log.lost == 3
    assert "3 have no trace, 3 of them because the log was stopped" in caplog.text


def test_a_trace_that_a_crash_left_without_its_text_is_completed_by_the_vote(ledger, monkeypatch):
    cast = vote(1)
    traces = VoteTraces("bot")
    monkeypatch.setattr(traces.tracing, "log_spans", lambda *_: None)
    traces.record([TracedTurn(cast.turn, spoken(cast), "v-9")], traces.ensure_experiment())
    ledger.journal.cast(cast)
    Mirror(ledger.journal).flush()
    (read,) = read_votes("bot").votes
    assert read_texts("bot", [read.vote])[read.vote.right.trace_id].answer == "another, longer answer"
    left = traces_by_side()["t-1 1"]
    assert (left.info.request_time, left.info.execution_duration) == (NOON_MS - 60_000, 2_500)
    assert left.data.spans[0].end_time_ns == (NOON_MS - 57_500) * 1_000_000


NOTING = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from votes_cast import spoken, vote
from mlflow_finetune_plugin.votes import Journal
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog
log = TurnLog(Journal("bot", Path(sys.argv[1])), sys.argv[2])
log.start()
for number in range(40):
    log.note(vote(number).turn, spoken(vote(number)), "v-1")
print("noted", flush=True)
log.flush(600)
"""


@pytest.mark.fault
@pytest.mark.process
def test_killed_while_writing_every_vote_finds_or_gets_both_traces(ledger):
    places = [str(ledger.journal.folder), ledger.uri, str(Path(votes_cast.__file__).parent)]
    traces = VoteTraces("bot")
    traces.ensure_experiment()
    process = subprocess.Popen([sys.executable, "-c", NOTING, *places])

    def written():
        return len(traces.tracing.search_traces(locations=[traces.experiment()], include_spans=False))

    wait_for(lambda: written() > 10, 180, "first traces")
    process.send_signal(signal.SIGKILL)
    process.wait()
    for number in range(40):
        ledger.journal.cast(vote(number))
    Mirror(ledger.journal).flush()
    reading = read_votes("bot")
    assert len(reading.votes) == 40
    texts = read_texts("bot", [read.vote for read in reading.votes])
    assert len(texts) == 80
    assert {text.answer for text in texts.values()} == {"a short answer", "another, longer answer"}
    times = {trace.info.request_time for trace in traces_by_side().values()}
    assert times == {NOON_MS, NOON_MS - 60_000}  # of the votes, and of the turns that came over before the kill


def test_turns_wait_while_the_server_is_away_and_their_votes_find_them(tmp_path, server, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    caplog.set_level(logging.WARNING)
    register_versions(server.uri)
    journal = Journal("bot", tmp_path / "votes")
    log = TurnLog(journal, server.uri, longest_wait_s=1)
    mirror = Mirror(journal, server.uri, poll_s=0.1, longest_wait_s=1)
    log.start()
    mirror.start()
    try:
        for number in range(30):
            log.note(vote(number).turn, spoken(vote(number)), "v-1")
        wait_for(lambda: log.pending < 30, 180, "first turns in MLflow")
        server.stop()  # killed, perhaps in the middle of a turn
        for number in range(30, 40):
            log.note(vote(number).turn, spoken(vote(number)), "v-1")
            journal.cast(vote(number))
        wait_for(lambda: log.fault, 60, "the outage told")
        server.start()
        assert log.flush(180), log.fault
        wait_for(lambda: mirror.pending == 0, 180, "all votes in MLflow")
    finally:
        assert log.stop()
        assert mirror.stop()
    assert log.lost == 0
    assert "wait in memory" in caplog.text
    traces = traces_by_side(server.uri)
    assert set(traces) == {f"t-{number} {version}" for number in range(40) for version in (1, 2)}
    assert {trace.info.request_time for trace in traces.values()} == {NOON_MS - 60_000}
    assert all(trace.data.spans for trace in traces.values())
    assert len(read_votes("bot", server.uri).votes) == 10
