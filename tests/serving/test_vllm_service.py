"""The same service on a real vLLM: answers, swaps, certificates under load, a rank too high, an engine that is killed."""

from __future__ import annotations

import concurrent.futures
import json

import httpx
import psutil
import pytest
from served_models import QUESTIONS, VersionMaker
from serving_process import CHAT, ask, body, marked, serving, start_serving, wait_until
from tiny_bases import tiny_base

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.fixture(scope="module")
def service(tmp_path_factory, registry):
    folder = tmp_path_factory.mktemp("vllm")
    with serving(folder, registry.uri, "bot", "--engine", "vllm", "--poll", "0.2", "--max-cpu-loras", "4") as started:
        yield started


def test_vllm_says_what_mlflow_loads(service, registry):
    import mlflow

    loaded = mlflow.pyfunc.load_model("models:/bot/2")
    expected = list(loaded.predict(list(QUESTIONS), params={"max_new_tokens": 8}))
    answers = [
        httpx.post(
            service.url + CHAT, json={**body("bot/2"), "messages": [{"role": "user", "content": question}]}, timeout=60
        )
        for question in QUESTIONS
    ]
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == expected
    assert {answer.headers["x-finetune-version"] for answer in answers} == {"2"}
    texts = {ask(service, name).json()["choices"][0]["message"]["content"] for name in ("base", "bot/1", "bot/2")}
    assert len(texts) == 3
    certificate = registry.client.get_model_version("bot", "1").tags["finetune.certificate.vllm.float32"]
    assert certificate.startswith("passed (vllm, ")


def test_new_versions_are_certified_while_others_answer(service, registry):
    """More versions than vLLM keeps in memory, each certified beside requests that go on: none of them fails."""
    registry.client.set_registered_model_alias("bot", "moving", "1")
    wait_until(lambda: ask(service, "bot@moving").status_code == 200)
    stop, faults, seen = [], [], set()

    def load(number):
        while not stop:
            answer = ask(service, "bot@moving", stream=number % 2 == 0)
            if answer.status_code != 200 or (number % 2 == 0 and "[DONE]" not in answer.text):
                faults.append(answer.text)
            seen.add(answer.headers.get("x-finetune-version"))

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        running = [threads.submit(load, number) for number in range(4)]
        try:
            versions = [registry.make("bot", seed=50 + n) for n in range(6)]
            for version in versions:
                registry.client.set_registered_model_alias("bot", "moving", version)
                wait_until(
                    lambda version=version: ask(service, "bot@moving").headers.get("x-finetune-version") == version
                )
                wait_until(lambda version=version: version in seen)  # one of the four has asked it, too
        finally:
            stop.append(True)
        for one in running:
            one.result()
    registry.client.set_registered_model_alias("bot", "challenger", "2")
    registry.client.delete_registered_model_alias("bot", "moving")
    assert not faults
    assert set(versions) <= seen


def test_the_base_stays_the_base_while_every_slot_is_taken(service, registry):
    """vLLM's CPU operators give rows without an adapter that of the last slot, unless they are told not to."""
    numbers = [registry.make("bot", seed=seed) for seed in (81, 82, 83, 84)]
    registry.client.set_registered_model_alias("bot", "challenger", "2")
    names = ["base", *(f"bot/{number}" for number in numbers)]
    alone = {
        name: [ask(service, name, question=q).json()["choices"][0]["message"]["content"] for q in QUESTIONS]
        for name in names
    }
    assert len({tuple(said) for said in alone.values()}) == len(names)

    def again(place):
        name, question = names[place % len(names)], QUESTIONS[place % len(QUESTIONS)]
        said = ask(service, name, question=question).json()["choices"][0]["message"]["content"]
        return name, said == alone[name][place % len(QUESTIONS)]

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        found = list(pool.map(again, range(200)))
    assert not [name for name, same in found if not same]


def test_a_rank_above_the_limit_is_told(service, registry):
    version = registry.make("bot", seed=60, r=64)
    try:
        fault = wait_until(lambda: {a["alias"]: a["fault"] for a in service.get("/readyz")[1]["aliases"]}["challenger"])
        assert "rank 64 is above its engine's limit of 16; fix: --max-rank 64" in fault
        assert ask(service, "bot@challenger").headers["x-finetune-version"] == "2"
        assert ask(service, f"bot/{version}").status_code == 404
    finally:
        registry.client.set_registered_model_alias("bot", "challenger", "2")
    service.wait_for("ready")


def test_what_vllm_refuses_is_served_once_it_is_converted(service, registry):
    """DoRA: the fault names the command; what that registers is certified and says what Transformers says with it."""
    import mlflow

    from mlflow_finetune_plugin.logged_models.converted_version import register_converted
    from mlflow_finetune_plugin.store.registry import find_model

    refused = registry.make("bot", seed=61, kind="dora", serving="convertible")
    try:
        fault = wait_until(lambda: {a["alias"]: a["fault"] for a in service.get("/readyz")[1]["aliases"]}["challenger"])
        assert "engine vllm cannot serve it" in fault
        assert f"mlflow-finetune export models:/bot/{refused} --register" in fault
        found = find_model(registry.client, f"models:/bot/{refused}")
        version = register_converted(registry.client, found, 16, max_nats=10).version.version
        wait_until(lambda: ask(service, "bot@challenger").headers.get("x-finetune-version") == version)
        tags = wait_until(
            lambda: (
                "finetune.certificate.vllm.float32" in (t := registry.client.get_model_version("bot", version).tags)
                and dict(t)
            )
        )
        assert tags["finetune.certificate.vllm.float32"].startswith("passed (vllm, ")
        expected = mlflow.pyfunc.load_model(f"models:/bot/{version}").predict(
            list(QUESTIONS), params={"max_new_tokens": 8}
        )
        messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
        answers = [ask(service, f"bot/{version}", messages=asked) for asked in messages]
        assert [a.json()["choices"][0]["message"]["content"] for a in answers] == list(expected)
        assert len(service.get("/readyz")[1]["engines"]) == 1
    finally:
        registry.client.set_registered_model_alias("bot", "challenger", "2")
    service.wait_for("ready")


@pytest.mark.fault
def test_a_killed_vllm_comes_back_and_leaves_no_process(service):
    family = psutil.Process(service.process.pid).children(recursive=True)
    (engine,) = [p for p in psutil.Process(service.process.pid).children() if "api_server" in " ".join(p.cmdline())]
    request = body("bot@champion", stream=True, max_tokens=200, ignore_eos=True)
    with httpx.stream("POST", service.url + CHAT, json=request, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine.kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_lost"
    assert ask(service, "bot@champion", timeout=300).status_code in (200, 503), "retried, or refused while it starts"
    answer = wait_until(lambda: answer if (answer := ask(service, "bot@champion")).status_code == 200 else None)
    assert answer.headers["x-finetune-version"] == "1"
    _, alive = psutil.wait_procs([p for p in family if p.pid != service.process.pid], timeout=20)
    assert not alive
    family = psutil.Process(service.process.pid).children(recursive=True)
    assert service.end() == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


@pytest.mark.fault
@pytest.mark.parametrize("said", ["", "Initializing a V1 LLM engine"])
def test_a_router_killed_while_vllm_starts_leaves_nothing(tmp_path, registry, said):
    """Before vLLM has said a word, and while it makes its engine, deaf to SIGTERM."""
    mark = str(tmp_path)
    own = {"FINETUNE_TEST": mark, "VLLM_LOGGING_LEVEL": "INFO"}
    service = start_serving(tmp_path, registry.uri, "bot", "--engine", "vllm", **own)
    try:
        wait_until(lambda: any(said in log.read_text() for log in service.store.glob("work/*/engines/*/engine.log")))
        assert service.status() in ("silent", "not ready")
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not marked(mark), seconds=15)
    finally:
        for process in marked(mark):
            process.kill()


@pytest.mark.parametrize("recorded", ["transformers", "vllm"])
def test_a_family_that_vllm_loads_no_adapters_on_is_one_error(tmp_path, registry, recorded):
    """Whether training recorded it, or vLLM itself says so: the command ends, because it would serve nothing."""
    base = tiny_base(tmp_path / "base", "gpt2")
    name = f"gpt2-{recorded}"
    number = VersionMaker(registry.uri, base, str(base)).make(name, seed=1, serving=recorded, target_modules=["c_attn"])
    service = start_serving(tmp_path, registry.uri, name, "--engine", "vllm", "--poll", "0.2")
    try:
        assert service.process.wait(240) == 2
    finally:
        service.process.kill()
    last = service.log.read_text().strip().splitlines()[-1]
    assert last.startswith("mlflow-finetune: ")
    assert f"{name}/{number}" in last
    assert "gpt2" in last.lower()
    assert "fix: " in last
    assert "--engine auto" in last or "--engine transformers" in last
