"""``mlflow-finetune playground`` and ``users`` as processes; the service behind it has the real embedded engine."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from conftest import free_port, wait_for
from forked import FORKS, start_module
from gradio_client import Client
from served_models import registry_of_bot
from serving_process import marked

from mlflow_finetune_plugin.cli.compare.playground import page_arguments, playground
from mlflow_finetune_plugin.errors import ConfigError

SECRET = "mf-a-secret-key"
OWN_PROCESSES = {FORKS: "no"}  # where a test reads command lines


@pytest.fixture(scope="module")
def registry(tmp_path_factory, empty_store):
    """``bot``, one version: its challenger."""
    with registry_of_bot(tmp_path_factory.mktemp("registry"), empty_store, versions=1) as tracking_uri:
        yield tracking_uri


class Command:
    """One command with its own mark, so that what it leaves behind is found."""

    def __init__(self, folder: Path, tracking_uri: str, *arguments: str, **more: str) -> None:
        self.mark, self.log = str(folder), folder / "output.log"
        environment = {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_REGISTRY_URI": tracking_uri,
            "FINETUNE_TEST": self.mark,
        }
        environment |= {"MLFLOW_FINETUNE_HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
        with self.log.open("wb") as out:
            self.process = start_module(
                "mlflow_finetune_plugin.cli",
                arguments,
                cwd=folder,
                env={**os.environ, **environment, **more},
                stdout=out,
                stderr=out,
                stdin=subprocess.DEVNULL,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def page(self, timeout_s: float = 240) -> str:
        def address():
            assert self.process.poll() is None, self.output[-3000:]
            match = re.search(r"playground  (http://\S+)", self.output)
            return match[1] if match else None

        return wait_for(address, timeout_s, f"page; it said {self.output[-2000:]}")

    def left(self) -> list[psutil.Process]:
        return marked(self.mark)

    def gone(self, seconds: float = 30) -> None:
        wait_for(lambda: not self.left(), seconds, f"end of {self.left()}")

    def kill_all(self) -> None:
        for process in self.left():
            process.kill()
        self.process.wait()


@pytest.fixture
def command(tmp_path, registry):
    started = []

    def start(*arguments, **more):
        started.append(Command(tmp_path, registry.uri, *arguments, **more))
        return started[-1]

    yield start
    for process in started:
        process.kill_all()


def listening(process: psutil.Process, port: int) -> bool:
    sockets = process.net_connections("tcp")
    return any(socket.status == psutil.CONN_LISTEN and socket.laddr.port == port for socket in sockets)


def serving_port(output: str) -> int:
    return int(re.search(r"serving     bot at http://127\.0\.0\.1:(\d+)/v1; its log: \S+", output)[1])


@pytest.mark.process
def test_serves_the_only_model_and_opens_its_page_and_both_end_together(command, tmp_path):
    port = free_port()
    store = str(tmp_path / "store")
    running = command(
        "playground",
        "--engine",
        "transformers",
        "--port",
        str(port),
        "--store",
        store,
        MLFLOW_FINETUNE_API_KEY=SECRET,
        **OWN_PROCESSES,
    )
    assert running.page() == f"http://127.0.0.1:{port}"
    assert "waiting for the service to listen" in running.output
    assert "serving     bot at http://127.0.0.1:" in running.output
    models = httpx.get(f"http://127.0.0.1:{serving_port(running.output)}/v1/models", trust_env=False).json()["data"]
    assert "bot@challenger" in [model["id"] for model in models]
    assert Client(f"http://127.0.0.1:{port}", verbose=False).config["title"] == "mlflow-finetune playground"
    assert not [process for process in running.left() if SECRET in " ".join(process.cmdline())]
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
    running.gone()
    assert "Traceback" not in running.output


@pytest.mark.process
@pytest.mark.parametrize("who", ["service", "page", "command"])
def test_none_outlives_the_others(command, who, tmp_path):
    port = free_port()
    running = command("playground", "--engine", "transformers", "--port", str(port), "--model", "bot")
    running.page()
    if who == "command":
        running.process.kill()
        running.gone()
        return
    listens_on = serving_port(running.output) if who == "service" else port
    (victim,) = (process for process in running.left() if listening(process, listens_on))
    victim.kill()
    code = running.process.wait(60)
    running.gone()
    if who == "service":
        assert code == 1
        assert "the service ended with code 137" in running.output
        assert "its log: " in running.output
    else:
        assert code == 137


@pytest.mark.process
def test_somebody_else_s_endpoint_is_enough(command):
    port = free_port()
    running = command("playground", "--endpoint", "http://127.0.0.1:9/v1", "--port", str(port))
    assert running.page() == f"http://127.0.0.1:{port}"
    assert "serving" not in running.output
    assert httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).json() == {"status": "ok"}
    began = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(20) == 0
    assert time.monotonic() - began < 5
    running.gone()
    refused = command("playground", "--endpoint", "http://127.0.0.1:9/v1", "--engine", "vllm")
    assert refused.process.wait(60) == 2
    assert "--engine and --store cannot be combined with --endpoint; fix" in refused.output


@pytest.mark.process
def test_a_service_that_cannot_start_is_told_and_ends_it(command, tmp_path):
    not_a_folder = tmp_path / "store"
    not_a_folder.write_text("")
    running = command(
        "playground", "--engine", "transformers", "--port", str(free_port()), "--store", str(not_a_folder)
    )
    assert running.process.wait(120) == 1
    assert "the service ended with code" in running.output
    running.gone()


@pytest.mark.process
def test_an_interruption_while_it_waits_ends_it_well(command):
    running = command("playground", "--engine", "transformers", "--port", str(free_port()))
    wait_for(lambda: "waiting for" in running.output, 60, "word of waiting")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    running.gone()


@pytest.mark.process
def test_a_fault_in_the_page_s_arguments_is_told_before_anything_is_served(command):
    began = time.monotonic()
    running = command("playground", "--host", "0.0.0.0")
    assert running.process.wait(60) == 2
    assert running.output.count("fix:") == 1
    assert "without a login only this machine may open the page" in running.output
    assert "serving" not in running.output
    assert time.monotonic() - began < 40


@pytest.mark.process
def test_which_model_is_asked_for_with_the_names(workplace):
    none = workplace.cli("playground")
    assert (none.returncode, "no model is registered; fix: train one" in none.stdout) == (2, True)
    for name in ("one", "two"):
        workplace.client().create_registered_model(name)
    several = workplace.cli("playground")
    assert (several.returncode, "fix: --model with one of: one, two" in several.stdout) == (2, True)
    unknown = workplace.cli("playground", "--model", "three")
    assert "no registered model 'three'; fix: --model with one of: one, two" in unknown.stdout


def test_the_page_is_told_all_that_the_command_is():
    from gradio_app.arguments import new_parser, read_settings
    from gradio_app.settings import PlaygroundSettings

    options = ["--side", "base", "--port", "1", "--host", "h", "--auth-file", "/f", "--user-header", "X-U"]
    options += ["--trusted-proxy", "10.0.0.1", "--promoter", "alice", "--public-host", "p", "--prompts", "/p"]
    options += ["--keep-traces", "12h", "--open", "--side=-x"]
    words = ["--endpoint", "http://a/v1", "--endpoint", "http://b/v1", "--model", "bot", *options]
    values = playground.make_context("playground", words).params
    assert list(values["page_options"]) == options
    arguments = new_parser().parse_args(page_arguments(values["endpoints"], values["model"], values["page_options"]))
    assert arguments.open
    assert read_settings(arguments) == PlaygroundSettings(
        endpoints=("http://a/v1", "http://b/v1"),
        model="bot",
        sides=("base", "-x"),
        host="h",
        port=1,
        auth_file=Path("/f"),
        user_header="X-U",
        trusted_proxies=("10.0.0.1",),
        promoters=("alice",),
        public_hosts=("p",),
        prompt_sets=(Path("/p"),),
        keep_traces_days=0.5,
    )


@pytest.mark.parametrize("name", ["my-bot", "my-bot/1", "models:/my-bot@champion"])
def test_the_model_is_the_first_argument_or_an_option(name):
    module = importlib.import_module("mlflow_finetune_plugin.cli.compare.playground")
    assert module._model_of(None, (name, "--port", "1")) == ("my-bot", ("--port", "1"))
    assert module._model_of(name, ("--port", "1")) == ("my-bot", ("--port", "1"))
    assert module._model_of(None, ("--port", "1")) == (None, ("--port", "1"))
    with pytest.raises(ConfigError, match="both name the model"):
        module._model_of("other", (name,))


@pytest.mark.process
def test_users_come_and_go_by_command(workplace):
    def users(*arguments, password=""):
        return subprocess.run(
            [sys.executable, "-m", "mlflow_finetune_plugin.cli", "users", *arguments],
            cwd=workplace.path,
            input=password,
            capture_output=True,
            text=True,
            check=False,
        )

    answer = users("add", "users.yaml", "alice", "--may-promote", password="correct horse\n")
    assert (answer.returncode, answer.stdout) == (0, "added user alice (may promote)\n")
    assert (
        users("add", "users.yaml", "bob", password="short\n").stderr.count("a password of 5 characters; fix: use 8")
        == 1
    )
    assert "horse" not in (workplace.path / "users.yaml").read_text()
    assert users("remove", "users.yaml", "alice").stdout == "removed user alice\n"
    assert users("remove", "users.yaml", "alice").returncode == 2


@pytest.mark.process
def test_the_command_imports_no_gradio():
    code = (
        "import sys; import mlflow_finetune_plugin.cli.compare.playground;"
        "import mlflow_finetune_plugin.cli.compare.playground_processes, mlflow_finetune_plugin.credentials.users;"
        "sys.exit('gradio' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
