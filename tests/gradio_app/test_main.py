"""``python -m gradio_app`` with the compare page, over a real endpoint."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest
from conftest import free_port, wait_for
from gradio_client import Client

from mlflow_finetune_plugin.credentials.users import add_user


@pytest.fixture
def started(workplace, endpoint):
    processes = []

    def start(*arguments):
        log = workplace.path / "page.log"
        port = free_port()
        command = [sys.executable, "-m", "gradio_app", "--endpoint", endpoint, "--port", str(port), *arguments]
        with log.open("wb") as out:
            processes.append(
                subprocess.Popen(
                    command, cwd=workplace.path, env={**os.environ, **workplace.environment}, stdout=out, stderr=out
                )
            )

        def address():
            assert processes[-1].poll() is None, log.read_text()[-3000:]
            return re.search(r"playground  (http://\S+)", log.read_text())

        return processes[-1], wait_for(address, 120, "page")[1], log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_the_page_has_every_tab_of_the_model_that_is_served(started, workplace):
    process, url, log = started()
    page = httpx.get(url, trust_env=False).text
    for tab in ("Compare", "Standings", "Runs", "Data"):
        assert f'"label":"{tab}"' in page, tab
    assert Client(url, verbose=False).config["title"] == "mlflow-finetune playground"
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 0
    assert "Unclosed" not in log.read_text()


def test_a_store_that_cannot_be_opened_keeps_nobody_from_the_page_and_is_told_to_who_votes(started, workplace):
    workplace.environment["MLFLOW_TRACKING_URI"] = "gopher://here"
    _, url, log = started("--model", "bot")
    assert "ledger_not_opened" in log.read_text()
    client = Client(url, verbose=False)
    assert client.predict(prompt="hello", api_name="/chat")["can_vote"]
    with pytest.raises(Exception, match="gopher://here failed to read or write votes"):
        client.predict(choice="left", api_name="/vote")


def test_with_an_auth_file_the_page_needs_a_login(started, workplace):
    file = workplace.path / "users.yaml"
    add_user(file, "alice", "correct horse")
    _, url, _ = started("--auth-file", "users.yaml")
    assert httpx.get(f"{url}/config", trust_env=False).status_code == 401
    client = Client(url, auth=("alice", "correct horse"), verbose=False)
    assert client.config["username"] == "alice"
