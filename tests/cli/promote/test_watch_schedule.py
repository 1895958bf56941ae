"""``watch --every`` as a process: through an outage of the registry, until it is told to end."""

import os
import signal
import threading

import mlflow
import pytest
from forked import start_module
from mlflow import MlflowClient
from proven_versions import register_proven, rows
from serving_process import wait_until

from mlflow_finetune_plugin.cli.promote.watch import Schedule, repeat


def test_an_outage_is_told_and_the_next_look_comes(tmp_path, server):
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    client = MlflowClient(server.uri)
    try:
        first = register_proven(client, "bot", rows(10), right=9)
        client.set_registered_model_alias("bot", "champion", first)
    finally:
        mlflow.set_tracking_uri(before)
    own = {**os.environ, "MLFLOW_TRACKING_URI": server.uri, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    log = tmp_path / "watch.log"
    with log.open("wb") as out:
        process = start_module(
            "mlflow_finetune_plugin.cli",
            ["watch", "bot", "--every", "1s"],
            cwd=tmp_path,
            env=own,
            stdout=out,
            stderr=out,
        )
    said = lambda text: log.read_text().count(text)  # noqa: E731
    try:
        wait_until(lambda: said("keep: bot, champion is version 1"))
        server.stop()
        wait_until(lambda: said("bot: the registry failed"))
        server.start()
        looks = said("keep: bot, champion is version 1")
        wait_until(lambda: said("keep: bot, champion is version 1") > looks)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_a_look_that_runs_is_finished_unless_the_end_is_asked_for_twice():
    looks = []

    def look(signals=1):
        looks.append("begun")
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        looks.append("ended")
        return 4

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert repeat(look, Schedule(3600.0)) == 4
    assert looks == ["begun", "ended"]
    with pytest.raises(KeyboardInterrupt):
        repeat(lambda: look(2), Schedule(3600.0))
    assert looks == ["begun", "ended", "begun"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_end_is_heard_between_two_looks():
    threading.Timer(0.5, signal.raise_signal, [signal.SIGTERM]).start()
    assert repeat(lambda: 3, Schedule(3600.0)) == 3
