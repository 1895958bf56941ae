"""The whole playground as a process, and those who want more of it than they may have."""

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
from gradio_client import Client
from playground_process import REAL_PAGE, playground
from votes_cast import register_versions

from gradio_app import app
from gradio_app.pages.visits import visitor
from gradio_app.playground import Playground
from gradio_app.settings import PlaygroundSettings


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    import mlflow

    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    register_versions(uri)
    mlflow.set_tracking_uri(before)
    return uri


@contextmanager
def playing(folder, endpoint, store, *arguments):
    home = str(folder / "home")
    more = {"MLFLOW_TRACKING_URI": store, "MLFLOW_FINETUNE_HOME": home}
    with playground(folder, *arguments, endpoint=endpoint, program=REAL_PAGE, **more) as place:
        yield place


@pytest.fixture(scope="module")
def place(tmp_path_factory, endpoint, store):
    with playing(tmp_path_factory.mktemp("place"), endpoint, store) as found:
        yield found


def cast_in(folder):
    found = [line for path in Path(folder).glob("home/votes/*/votes.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["vote"] for line in found]


@pytest.mark.bad_input
def test_nobody_goes_round_the_queue_or_shares_a_session_that_nobody_named(place):
    for name, data in (("chat", ["hello", "", 0, 1, 9, None, False]), ("export", []), ("vote", ["left", [], "", True])):
        answer = place.ask("POST", f"/gradio_api/run/{name}", json={"data": data})
        assert answer.status_code == 404, name
    with pytest.raises(Exception, match="send a session_hash of your own"):
        visitor(__import__("gradio").Request())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"prompt": "hi", "temperature": "hot"}, "are numbers"),
        ({"prompt": "hi", "temperature": 1e308}, "0 to 2"),
        ({"prompt": "hi", "top_p": 0}, "above 0"),
        ({"prompt": "hi", "max_tokens": -1}, "from 1"),
        ({"prompt": None}, "Write a prompt"),
        ({"prompt": "x" * 20_001}, "the limit is 20,000"),
    ],
)
def test_a_program_is_told_what_cannot_be_asked(place, asked, why):
    with pytest.raises(Exception, match=why):
        Client(place.url, verbose=False).predict(api_name="/chat", **asked)


def test_a_page_that_was_closed_leaves_nothing():
    """Gradio keeps a quarter of a megabyte of each for ever."""
    import gradio as gr
    from gradio.state_holder import StateHolder

    playground_of_nobody = Playground(PlaygroundSettings(("http://127.0.0.1:9/v1",)))
    blocks = app.build(playground_of_nobody, None, lambda name: False)
    holder = StateHolder()
    holder.set_blocks(blocks)
    assert holder["mine"].config_values
    assert holder["other"].config_values
    leave = next(one.fn for one in blocks.fns.values() if any(event == "unload" for _, event in one.targets))
    leave(gr.Request(session_hash="mine"))
    assert list(holder.session_data) == ["other"]


@pytest.mark.fault
def test_a_vote_that_was_acknowledged_outlives_a_kill(tmp_path, endpoint, store):
    with playing(tmp_path, endpoint, store) as first:
        client = Client(first.url, verbose=False)
        client.predict(prompt="hello", api_name="/chat")
        voted = client.predict(choice="left", comment="hé 😀", api_name="/vote")
        first.end(signal.SIGKILL)
    assert [(vote["choice"], vote["comment"]) for vote in cast_in(tmp_path)] == [("left", "hé 😀")]
    with playing(tmp_path, endpoint, store) as second:
        client = Client(second.url, verbose=False)
        with pytest.raises(Exception, match="Send a prompt first"):  # the turn went with the process
            client.predict(choice="right", api_name="/vote")
        client.predict(prompt="hello", api_name="/chat")
        client.predict(choice="tie", api_name="/vote")
    assert [vote["choice"] for vote in cast_in(tmp_path)] == ["left", "tie"]
    assert voted["names"]["A"] != voted["names"]["B"]


def test_an_unregistered_plain_endpoint_can_be_compared_and_votes_are_refused_with_the_reason(
    tmp_path, endpoint, store
):
    with playing(tmp_path, endpoint, store, "--side", "slow", "--side", "late") as place:
        client = Client(place.url, verbose=False)
        told = client.predict(prompt="hello", api_name="/chat")
        assert not told["can_vote"]
        with pytest.raises(Exception, match="no registered model in common"):
            client.predict(choice="left", api_name="/vote")
