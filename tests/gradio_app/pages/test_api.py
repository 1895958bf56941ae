"""The comparison for programs, through a real server: gradio_client chats, votes, exports, reads the standings."""

import os
import subprocess
import sys
import time

import mlflow
import pytest
from conftest import free_port, wait_for
from gradio_client import Client
from gradio_client.exceptions import AppError
from votes_cast import register_versions


@pytest.fixture(scope="module")
def app(endpoint, empty_store, tmp_path_factory):
    import shutil

    folder = tmp_path_factory.mktemp("app")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    register_versions(uri)
    mlflow.set_tracking_uri(before)
    port, log = free_port(), folder / "log"
    environment = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_FINETUNE_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "gradio_app", "--endpoint", endpoint, "--port", str(port)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, env={**os.environ, **environment})
    try:
        wait_for(lambda: "  playground  http" in log.read_text() or process.poll() is not None, 120, "the page")
        assert process.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(20) == 0


def chat(client, prompt="hello", **more):
    return list(client.submit(prompt, api_name="/chat", **more))


def test_answers_stream_and_the_last_word_is_whole(app):
    told = chat(Client(app, verbose=False))
    assert [one["is_over"] for one in told] == [False] * (len(told) - 1) + [True]
    assert {answer["content"][-6:] for answer in told[-1]["answers"]} == {" first", "second"}
    assert told[-1]["can_vote"]
    assert "champion" not in str(told)


def test_a_vote_tells_who_was_who_and_stands_in_the_standings(app):
    client = Client(app, verbose=False)
    chat(client)
    first = client.predict("tie", show_names=False, api_name="/vote")
    assert (first["names"], first["receipts"]) == (None, None)
    second = client.predict("left", ["clear"], "well said", api_name="/vote")
    assert second["vote_id"] == first["vote_id"]
    assert second["revision"] == 2
    assert set(second["names"].values()) == {"bot@champion", "bot@challenger"}
    assert second["has_receipts"]
    with pytest.raises(AppError, match="your vote on this turn is final"):
        client.predict("right", api_name="/vote")
    exported = client.predict(api_name="/export")["turns"][0]
    assert exported["vote"] == "left"
    assert exported["answers"][0]["receipt"]["version"] in ("1", "2")

    def counted():
        pairs = client.predict(api_name="/standings")["pairs"]
        return bool(pairs) and pairs[0]["people"]["votes"] >= 1

    deadline = time.monotonic() + 40
    while not counted():
        assert time.monotonic() < deadline, client.predict(api_name="/standings")
        time.sleep(1)


def test_nobody_votes_before_asking_nor_for_another_session(app):
    chat(Client(app, verbose=False))
    with pytest.raises(AppError, match="Send a prompt first"):
        Client(app, verbose=False).predict("left", api_name="/vote")


def test_no_choice_is_no_vote(app):
    client = Client(app, verbose=False)
    chat(client)
    with pytest.raises(AppError, match="'best' is not a valid choice"):
        client.predict("best", api_name="/vote")


def test_a_conversation_goes_on_and_begins_anew(app):
    client = Client(app, verbose=False)
    chat(client, "one")
    chat(client, "two")
    messages = client.predict(api_name="/export")["turns"][-1]["messages"]
    assert [message["content"] for message in messages][0::2] == ["one", "two"]
    chat(client, "three", new_conversation=True)
    assert len(client.predict(api_name="/export")["turns"]) == 1


def test_too_long_a_prompt_is_told_so(app):
    with pytest.raises(AppError, match=r"the limit is 20,000"):
        Client(app, verbose=False).predict("x" * 20_001, api_name="/chat")
