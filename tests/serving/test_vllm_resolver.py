"""Names that somebody's vLLM is asked for: found in the registry, or refused, without vLLM itself."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

import pytest
from serving_process import free_port
from tiny_adapters import load_model
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.serving import vllm_resolver
from mlflow_finetune_plugin.serving.vllm_resolver import PatientFinder, VersionFinder

BASE = str(EMBEDDED_FOLDER)


@pytest.fixture
def finder(tmp_path, registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    return VersionFinder(frozenset(("bot",)), tmp_path / "store")


def test_a_version_is_found_verified_and_inside_the_store(finder, registry, tmp_path):
    found = finder.find(BASE, "bot/1")
    assert found.adapter.folder.resolve().is_relative_to((tmp_path / "store").resolve())
    assert (
        folder_digest(found.adapter.folder)
        == registry.client.get_model_version("bot", "1").tags["finetune.adapter_digest"]
    )
    assert finder.find(BASE, "bot/1") is found


@pytest.mark.parametrize(
    "name", ["bot", "bot@champion", "other/1", "bot/99", "bot/../../etc", "../bot/1", "/etc/passwd", "bot/1/x", ""]
)
def test_nothing_else_is(finder, name):
    assert finder.find(BASE, name) is None


def test_another_base_is_refused(finder, tmp_path):
    from tiny_bases import tiny_base

    assert finder.find(str(tiny_base(tmp_path / "other", "llama")), "bot/1") is None


def test_what_was_refused_is_not_asked_for_again_at_once(finder, registry, monkeypatch):
    assert finder.find(BASE, "bot/98") is None
    monkeypatch.setattr(vllm_resolver, "Fetcher", None)  # asking again would break
    started = time.monotonic()
    assert all(finder.find(BASE, "bot/98") is None for _ in range(1000))
    assert time.monotonic() - started < 1


def test_a_fetch_that_takes_too_long_is_waited_for_by_the_next_who_asks(finder):
    """And no second one is begun beside it."""
    release, asked = threading.Event(), []
    find = finder.find

    def slow(base, name):
        asked.append(name)
        assert release.wait(30)
        return find(base, name)

    finder.find = slow

    async def work():
        patient = PatientFinder(finder, timeout_s=0.2)
        assert await patient.find(BASE, "bot/1") is None
        assert await patient.find(BASE, "bot/1") is None
        release.set()
        while (found := await patient.find(BASE, "bot/1")) is None:
            continue
        return found

    found = asyncio.run(work())
    assert (found.model, found.number) == ("bot", "1")
    assert asked == ["bot/1"] * len(asked)
    assert len(asked) <= 2, "the one that took long, and perhaps one after it had ended"


def test_a_base_that_cannot_be_looked_at_is_refused(finder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert finder.find("somebody/no-such-base", "bot/1") is None


def test_ten_thousand_names_leave_no_trace(finder, monkeypatch):
    for number in range(10_000):
        assert finder.find(BASE, f"nobody-{number}/1") is None
    assert not finder._unknown


@pytest.mark.process
def test_nothing_is_loaded_unless_models_are_named():
    code = "import sys; from mlflow_finetune_plugin.serving import vllm_resolver as r; r.register(); assert 'vllm' not in sys.modules"
    own = {name: value for name, value in os.environ.items() if name != "FINETUNE_RESOLVER_MODELS"}
    subprocess.run([sys.executable, "-c", code], check=True, env=own)


@dataclass(frozen=True)
class Server:
    """Anyone's vLLM: the real server, its real plugin loading, a base of its own."""

    url: str

    def post(self, route, **body):
        asked = urllib.request.Request(
            self.url + route, json.dumps(body).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, model):
        return self.post("/v1/completions", model=model, prompt="where is my card?\n", max_tokens=8, temperature=0)


@pytest.fixture(scope="module")
def vllm(tmp_path_factory, registry):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder, port = tmp_path_factory.mktemp("vllm"), free_port()
    own = {
        "MLFLOW_TRACKING_URI": registry.uri,
        "FINETUNE_RESOLVER_MODELS": "bot",
        "FINETUNE_RESOLVER_STORE": str(folder / "store"),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", BASE, "--served-model-name", BASE]
    command += ["--enable-lora", "--max-lora-rank", "16", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager"]
    with (folder / "vllm.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, (folder / "vllm.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        os.killpg(process.pid, 9)
        process.wait()


@pytest.mark.vllm
def test_anyones_vllm_loads_a_version_on_first_use(vllm):
    """Names that it has never seen."""
    answers = {model: vllm.complete(model) for model in (BASE, "bot/1", "bot/2")}
    assert {status for status, _ in answers.values()} == {200}
    assert len({answer["choices"][0]["text"] for _, answer in answers.values()}) == 3
    assert vllm.complete("bot/99")[0] == 404
    assert vllm.complete("../bot/1")[0] == 404


@pytest.mark.vllm
def test_anyones_vllm_says_of_the_embedded_base_what_transformers_says(vllm):
    tokenizer, model = AutoTokenizer.from_pretrained(BASE), load_model(EMBEDDED_FOLDER)
    chat = [{"role": "user", "content": "My name is Anna."}]
    status, answer = vllm.post("/v1/chat/completions", model=BASE, messages=chat, temperature=0, max_tokens=24)
    assert status == 200, answer
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    expected = model.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert answer["choices"][0]["message"]["content"] == tokenizer.decode(expected, skip_special_tokens=True)
