"""Faults that must lose nothing, each on real parts: engines killed, registries that go, stores that fill, signals."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import httpx
import mlflow
import pytest
from mlflow.exceptions import MlflowException
from served_models import VersionMaker
from serving_process import CHAT, ask, body, engine_of, marked, serving, start_serving, wait_until

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.store.served_tags import served

pytestmark = pytest.mark.process

ENGINE = ("--engine", "transformers", "--poll", "0.2")


def deleted(client, name):
    """Delete a model. MLflow's SQLite store refuses it in the moment in which the router writes a tag to a version."""
    try:
        client.delete_registered_model(name)
    except MlflowException as error:
        if "FOREIGN KEY constraint failed" not in str(error):
            raise
        return False
    return True


@pytest.mark.fault
def test_an_engine_killed_while_streaming(service):
    """The client gets an error event, the engine comes back, the next request is answered."""
    request = body("bot@champion", stream=True, max_tokens=220, ignore_eos=True)
    with httpx.stream("POST", service.url + CHAT, json=request, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        engine_of(service).kill()
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "engine_lost"
    assert "data: [DONE]" not in rest
    next_answer = ask(service, "bot@champion", timeout=240)
    assert next_answer.status_code == 200 or next_answer.headers["retry-after"], "retried, or refused while it starts"
    service.wait_for("ready")
    after = ask(service, "bot@champion")
    assert (after.status_code, after.headers["x-finetune-version"]) == (200, "1")
    assert service.get("/readyz")[1]["engines"][0]["restarts"] == 1


@pytest.mark.fault
def test_requests_that_an_engine_has_not_begun_to_answer_are_sent_again(service):
    """The engine hangs and is replaced: whole and streamed answers of which nothing was sent come from the new one."""
    engine = engine_of(service)
    group = os.getpgid(engine.pid)
    restarts = service.get("/readyz")[1]["engines"][0]["restarts"]
    os.killpg(group, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        names = ("bot@champion", "bot@champion", "base")
        answers = [
            pool.submit(ask, service, name, stream=number == 1, timeout=240) for number, name in enumerate(names)
        ]
        wait_until(lambda: in_flight(service) == 3)
        os.killpg(group, signal.SIGKILL)
        answers = [answer.result() for answer in answers]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert "data: [DONE]" in answers[1].text
    assert "engine_lost" not in answers[1].text
    assert service.get("/readyz")[1]["engines"][0]["restarts"] == restarts + 1
    assert service.log.read_text().count("answer_retried") == 3


def in_flight(service):
    text = httpx.get(service.url + "/metrics").text
    return sum(float(value) for value in re.findall(r"finetune_in_flight\{[^}]*\} (\S+)", text))


@pytest.mark.fault
def test_the_registry_is_told_of_failures_and_of_nothing_that_is_no_version_s_fault(tmp_path, registry):
    """Each answer once; a client that went away, a request refused, shadow traffic and a base are none of the version's."""
    number = registry.make("told", seed=5)
    shadowed = registry.make("told", seed=6)
    registry.client.set_registered_model_alias("told", "champion", number)
    registry.client.set_registered_model_tag("told", "finetune.shadow", "challenger")
    started = time.time()
    with serving(tmp_path, registry.uri, "told", *ENGINE, "--tell-every", "0.2") as service:
        told = lambda version: served(registry.client.get_model_version("told", version).tags, version)  # noqa: E731
        assert [ask(service, name).status_code for name in ("told@champion", "told@champion", "base")] == [200] * 3
        assert httpx.post(service.url + CHAT, json=body("told@champion", stream=True), timeout=60).status_code == 200
        assert ask(service, "told@champion", max_tokens=10**6).status_code == 400  # the engine's own refusal
        endless = body("told@champion", stream=True, max_tokens=220, ignore_eos=True)
        with httpx.stream("POST", service.url + CHAT, json=endless, timeout=60) as answer:
            next(answer.iter_lines())
        wait_until(lambda: 'reason="client_gone"' in httpx.get(service.url + "/metrics").text)
        with httpx.stream("POST", service.url + CHAT, json=endless, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            engine_of(service).kill()
            assert "engine_lost" in list(lines)[-2]
        ((router, found),) = wait_until(lambda: (t := told(number)) and next(iter(t.values())).failed and t).items()
        assert router.endswith(f"-{service.port}")
        assert (found.answers, found.failed, found.recent.answers) == (4, 1, 3)
        assert started <= found.begun <= found.recent.since <= found.recent.until <= time.time()
        assert 'shadow="true"' in httpx.get(service.url + "/metrics").text
        assert told(shadowed) == {}


@pytest.mark.fault
def test_an_engine_that_is_never_ready_is_told(tmp_path, registry):
    service = start_serving(tmp_path, registry.uri, "bot", *ENGINE, "--max-model-len", "100000000")
    try:
        fault = wait_until(
            lambda: (
                service.status() == "not ready"
                and service.get("/readyz")[1]["engines"]
                and service.get("/readyz")[1]["engines"][0]["fault"]
            )
        )
        assert "while starting" in fault
        answer = ask(service, "bot@champion")
        assert answer.status_code == 503
        assert "while starting" in answer.json()["error"]["message"]
    finally:
        assert service.end() == 0


@pytest.mark.fault
def test_a_registry_that_is_away_at_the_start_and_later(tmp_path, server):
    """What was good stays; a start without the registry serves what was good before; it follows again when it is back."""
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        maker = VersionMaker(server.uri)
        for seed in (1, 2):
            maker.make("bot", seed=seed)
        maker.client.set_registered_model_alias("bot", "champion", "1")
    mlflow.set_tracking_uri(before)
    server.stop()
    service = start_serving(tmp_path, server.uri, "bot", *ENGINE, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    try:
        wait_until(lambda: service.status() == "not ready")
        assert "cannot be read from the registry" in wait_until(lambda: service.get("/readyz")[1]["registry"]["fault"])
        server.start()
        service.wait_for("ready")
        server.stop()
        service.wait_for("degraded")
        assert ask(service, "bot@champion").headers["x-finetune-version"] == "1"
        assert "finetune_registry_up 0.0" in httpx.get(service.url + "/metrics").text
        server.start()
        service.wait_for("ready")
        maker.client.set_registered_model_alias("bot", "champion", "2")
        wait_until(lambda: ask(service, "bot@champion").headers["x-finetune-version"] == "2")
        assert service.end() == 0
        server.stop()
        service = start_serving(tmp_path, server.uri, "bot", *ENGINE, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        service.wait_for("degraded")
        wait_until(lambda: ask(service, "bot@champion").headers.get("x-finetune-version") == "2")
        assert service.end() == 0
        (service.store / "aliases.json").write_text('{"bot": [1]}')
        service = start_serving(tmp_path, server.uri, "bot", *ENGINE, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        service.wait_for("not ready")
        wait_until(lambda: "aliases_forgotten" in service.log.read_text())
    finally:
        service.end()


@pytest.mark.fault
def test_a_model_that_is_gone_is_out_of_service_and_leaves_the_others_moving(tmp_path, registry):
    for name in ("gone", "stays"):
        first, second = (registry.make(name, seed=seed) for seed in (1, 2))
        registry.client.delete_registered_model_alias(name, "challenger")
        registry.client.set_registered_model_alias(name, "champion", first)
    with serving(tmp_path, registry.uri, "gone", "stays", *ENGINE) as service:
        wait_until(lambda: deleted(registry.client, "gone"))
        service.wait_for("degraded")
        assert "no such model" in service.get("/readyz")[1]["registry"]["fault"]
        registry.client.set_registered_model_alias("stays", "champion", second)
        wait_until(lambda: ask(service, "stays@champion").headers["x-finetune-version"] == second)
        assert ask(service, "gone@champion").status_code == 404
        assert ask(service, "gone").status_code == 404


def test_a_model_that_the_registry_does_not_have_is_no_start(tmp_path, registry):
    service = start_serving(tmp_path, registry.uri, "bott")
    assert service.process.wait(60) == 2
    said = service.log.read_text()
    assert f"bott: the registry has no such model; did you mean 'bot'? (registry: {registry.uri}; fix: " in said
    assert "or set MLFLOW_TRACKING_URI to the one that has it)" in said
    assert "serving  " not in said
    assert list((service.store / "work").iterdir()) == []


@pytest.fixture
def refused(tmp_path, registry, monkeypatch, capsys):
    """What ``serve`` says, run in this process, before it ends with code 2."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # it sets what a process of its own needs
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    before = signal.getsignal(signal.SIGHUP)

    def said(*arguments):
        store = tmp_path / "store"
        assert main(["serve", *arguments, "--store", str(store)]) == 2
        assert not (store / "work").exists() or not list((store / "work").iterdir())
        return capsys.readouterr().err

    yield said
    signal.signal(signal.SIGHUP, before)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("base",), "is not the name of a registered model"),
        (("bot", "--host", "0.0.0.0"), "other machines need API keys"),
        (("bot", "--api-key-file", "absent.yaml"), "cannot be read"),
        (("bot", "--base-model", "/nowhere"), "has no config.json"),
    ],
)
def test_bad_settings_are_one_message(refused, arguments, said):
    message = refused(*arguments)
    assert said in message
    assert "serving  " not in message


def test_numbers_that_are_none_are_told_all_at_once(refused):
    names = ("store", "body", "loaded", "loras", "cpu-loras", "model-len", "num-seqs")
    said = refused("bot", *(word for name in names for word in (f"--max-{name}", "0")))
    assert "7 problems" in said
    for name in names:
        assert f"max {name.replace('-', ' ')} 0: not valid; fix: use a number from 1" in said


def test_a_port_that_is_taken_is_told(refused):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = refused("bot", *ENGINE, "--port", str(taken.getsockname()[1]))
    assert "is in use; fix: --port with another number" in said
    assert "serving  " not in said, "it is printed only once the service listens"


def test_an_address_of_another_machine_is_told(tmp_path, refused):
    from mlflow_finetune_plugin.credentials.api_keys import add_key

    add_key(tmp_path / "keys.yaml", "alice")
    said = refused("bot", "--host", "192.0.2.1", "--api-key-file", str(tmp_path / "keys.yaml"))  # of RFC 5737, nobody's
    assert "or --host with an address of this machine" in said


@pytest.mark.fault
def test_sigterm_under_load_lets_answers_end(tmp_path, registry):
    with serving(tmp_path, registry.uri, "bot", *ENGINE) as service:
        engine = engine_of(service)
        told = []

        def stream():
            with httpx.stream(
                "POST",
                service.url + CHAT,
                json=body("bot@champion", stream=True, max_tokens=200, ignore_eos=True),
                timeout=60,
            ) as answer:
                told.append([line for line in answer.iter_lines() if line])

        threads = [threading.Thread(target=stream) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(
            lambda: httpx.get(service.url + "/metrics").text.count('finetune_in_flight{model="bot",version="1"} 4.0')
        )
        assert service.end() == 0
        for thread in threads:
            thread.join()
        assert [lines[-1] for lines in told] == ["data: [DONE]"] * 4
        assert not engine.is_running()


@pytest.mark.fault
def test_a_router_killed_while_its_engine_starts_leaves_nothing(tmp_path, registry):
    mark = str(tmp_path)
    service = start_serving(tmp_path, registry.uri, "bot", *ENGINE, FINETUNE_TEST=mark)
    try:
        wait_until(lambda: len(marked(mark)) >= 3)  # the router, the engine, what watches them
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not marked(mark), seconds=15)
    finally:
        service.process.kill()


@pytest.mark.fault
def test_an_adapter_that_was_changed_in_the_store_is_not_loaded_again_but_fetched(tmp_path, registry):
    """Its engine is restarted, and would read the changed file."""
    with serving(tmp_path, registry.uri, "bot", *ENGINE, FINETUNE_TEST=str(tmp_path)) as service:
        answer = ask(service, "bot@champion").json()["choices"][0]["message"]["content"]
        digest = registry.client.get_model_version("bot", "1").tags["finetune.adapter_digest"]
        path = service.store / "adapters" / digest / "adapter_config.json"
        good = path.read_text()
        path.write_text(json.dumps({**json.loads(good), "lora_alpha": 77}))
        engine_of(service).kill()
        wait_until(lambda: "was changed after it was verified" in service.log.read_text())
        wait_until(lambda: ask(service, "bot@champion").status_code == 200)
        assert ask(service, "bot@champion").json()["choices"][0]["message"]["content"] == answer
        assert path.read_text() == good


def test_versions_asked_for_by_number_do_not_pile_up(tmp_path, registry):
    """Beyond the limit the least recently used goes, unless an alias means it; asked for again it comes back."""
    versions = ["1", "2", *(registry.make("bot", seed=80 + n) for n in range(4))]
    registry.client.set_registered_model_alias("bot", "challenger", "2")
    with serving(tmp_path, registry.uri, "bot", *ENGINE, "--max-loaded", "3") as service:
        texts = {}
        for _ in range(2):
            for version in versions:
                answer = ask(service, f"bot/{version}")
                assert answer.headers.get("x-finetune-version") == version, answer.text
                said = answer.json()["choices"][0]["message"]["content"]
                assert texts.setdefault(version, said) == said
                listed = [m["id"] for m in service.get("/v1/models")[1]["data"] if "/" in m["id"]]
                assert len(listed) <= 3
                assert {"bot/1", "bot/2"} <= set(listed)


@pytest.mark.fault
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits another process")
def test_a_full_disk_keeps_what_is_served(service, registry):
    """No file can be written whole: the alias stays on its version and the fault is told; with room again it moves."""
    before = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (20_000, before[1]))
    version = registry.make("bot", seed=90)
    try:
        fault = wait_until(lambda: {a["alias"]: a["fault"] for a in service.get("/readyz")[1]["aliases"]}["challenger"])
        assert "File too large" in fault
        assert service.status() == "degraded"
        assert ask(service, "bot@challenger").headers["x-finetune-version"] == "2"
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, before)
        wait_until(lambda: ask(service, "bot@challenger").headers["x-finetune-version"] == version)
        service.wait_for("ready")
    finally:
        registry.client.set_registered_model_alias("bot", "challenger", "2")


@pytest.mark.fault
def test_two_routers_on_one_store(service, registry, tmp_path):
    with serving(tmp_path, registry.uri, "bot", *ENGINE, "--store", str(service.store)) as second:
        texts = {ask(one, "bot@champion").json()["choices"][0]["message"]["content"] for one in (service, second)}
        assert len(texts) == 1
        assert second.end() == 0
    assert ask(service, "bot@champion").status_code == 200
    assert ask(service, "bot@challenger").status_code == 200


@pytest.mark.fault
def test_a_store_that_is_full(tmp_path, registry):
    """What is served stays served; the version that found no room is told, and comes when there is room."""
    one = sum(path.stat().st_size for path in (registry.artifacts("bot", "1") / "adapter").iterdir())
    number = registry.make("bot", seed=77)
    registry.client.set_registered_model_alias("bot", "challenger", "1")
    with serving(tmp_path, registry.uri, "bot", *ENGINE, "--max-store", str(one + one // 2)) as service:
        registry.client.set_registered_model_alias("bot", "challenger", number)
        service.wait_for("degraded")
        fault = wait_until(
            lambda: next(a["fault"] for a in service.get("/readyz")[1]["aliases"] if a["alias"] == "challenger")
        )
        assert "is full" in fault
        assert ask(service, "bot@challenger").headers["x-finetune-version"] == "1"
        registry.client.set_registered_model_alias("bot", "champion", number)
        assert ask(service, "bot@champion").status_code == 200
    registry.client.set_registered_model_alias("bot", "champion", "1")
    registry.client.set_registered_model_alias("bot", "challenger", "2")


@pytest.mark.bad_input
def test_keys_are_asked_for(tmp_path, registry):
    from mlflow_finetune_plugin.credentials.api_keys import add_key

    file = tmp_path / "keys.yaml"
    key = add_key(file, "alice")
    file.write_text(file.read_text() + "    requests_per_minute: 2\n")
    with serving(tmp_path, registry.uri, "bot", *ENGINE, "--api-key-file", str(file)) as service:
        for given in (None, "Bearer wrong", "Bearer", f"Basic {key}", key):
            answer = httpx.post(service.url + CHAT, json=body("bot"), headers={"authorization": given} if given else {})
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert httpx.get(service.url + "/v1/models").status_code == 401
        own = {"authorization": f"Bearer {key}", "host": "bots.example"}  # any name, because a foreign page has no key
        assert httpx.get(service.url + "/readyz").json() == {"status": "ready"}
        assert httpx.get(service.url + "/readyz", headers=own).json()["aliases"]
        codes = [httpx.post(service.url + CHAT, json=body("bot"), headers=own, timeout=60) for _ in range(3)]
        assert [answer.status_code for answer in codes] == [200, 200, 429]
        assert 1 <= int(codes[-1].headers["retry-after"]) <= 30
        assert "alice" in service.log.read_text()
        assert key not in service.log.read_text()
        good = file.read_text()
        file.write_text("keys: 3")
        still = httpx.post(service.url + CHAT, json=body("bot"), headers=own)
        assert still.status_code == 429, "what was good last still is"
        assert "keys_not_read" in service.log.read_text()
        file.write_text(good)
        yesterday = datetime.now(UTC).date() - timedelta(days=1)
        file.write_text(file.read_text().replace("requests_per_minute: 2", f"expires: {yesterday}"))
        late = httpx.post(service.url + CHAT, json=body("bot"), headers=own)
        assert (late.status_code, late.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.bad_input
def test_a_key_has_its_share_and_large_requests_wait_for_one_another(tmp_path, registry):
    """Running answers of a key are limited, and counted until they end; too many turns are refused; another key is served."""
    from mlflow_finetune_plugin.credentials.api_keys import add_key

    file = tmp_path / "keys.yaml"
    first = {"authorization": f"Bearer {add_key(file, 'alice', concurrent_requests=1)}"}
    other = {"authorization": f"Bearer {add_key(file, 'bob')}"}
    with serving(tmp_path, registry.uri, "bot", *ENGINE, "--api-key-file", str(file), "--tell-every", "0.2") as service:

        def status(key, **more):
            answer = httpx.post(service.url + CHAT, json={**body("bot"), **more}, headers=key, timeout=60)
            return answer.status_code, answer.json().get("error", {}).get("code")

        with socket.create_connection(("127.0.0.1", service.port)) as slow:  # its body never comes
            head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {first['authorization']}\r\nContent-Length: 9\r\n\r\n"
            slow.sendall(head.encode())
            wait_until(lambda: status(first) == (429, "too_many_concurrent_requests"))
            assert status(other) == (200, None)
        wait_until(lambda: status(first) == (200, None))
        turns = [{"role": ("user", "assistant")[number % 2], "content": "hi"} for number in range(2049)]
        assert status(first, messages=turns) == (413, "too_many_messages")
        assert status(first, messages=turns[1:])[0] == 400, "the context length is shorter"
        long = [{"role": "user", "content": "hi " * 200_000}]
        with ThreadPoolExecutor(12) as pool:
            codes = Counter(pool.map(lambda _: status(other, messages=long), range(12)))
        assert codes.keys() <= {(400, None), (400, 400), (429, "too_many_large_requests")}
        assert codes.total() - codes[429, "too_many_large_requests"] >= 4
        assert status(first) == (200, None), "refused requests are not counted"

        for _ in range(2):
            endless = body("bot@champion", stream=True, max_tokens=220, ignore_eos=True)
            with httpx.stream("POST", service.url + CHAT, json=endless, headers=other, timeout=60) as answer:
                lines = answer.iter_lines()
                next(lines)
                engine_of(service).kill()
                assert "engine_lost" in list(lines)[-2]
            wait_until(lambda: status(other) == (200, None))

        def summary():
            reports = served(registry.client.get_model_version("bot", "1").tags, "bot/1").items()
            return next(report for router, report in reports if router.endswith(f"-{service.port}"))

        assert wait_until(lambda: (report := summary()).left_out and report).failed == 1, (
            "the failures of a key count as one"
        )


def test_where_it_serves_is_told_when_it_listens_and_a_true_webhook_makes_it_look_at_once(tmp_path, registry):
    from mlflow.webhooks.delivery import _generate_hmac_signature

    arguments = ("--engine", "transformers", "--poll", "600")
    service = start_serving(tmp_path, registry.uri, "bot", *arguments, FINETUNE_WEBHOOK_SECRET="s")
    try:
        wait_until(lambda: "serving  bot at " in service.log.read_text(), seconds=60)
        assert service.get("/healthz")[0] == 200
        assert service.log.read_text().count("serving  bot at ") == 1
        service.wait_for("ready")
        registry.client.set_registered_model_alias("bot", "hooked", "1")
        try:
            assert ask(service, "bot@hooked").status_code == 404
            stamp = str(int(time.time()))
            signature = _generate_hmac_signature("s", "d", stamp, "{}")
            headers = {"X-MLflow-Signature": signature, "X-MLflow-Timestamp": stamp, "X-MLflow-Delivery-Id": "d"}
            forged = {**headers, "X-MLflow-Signature": "v1,AAAA"}
            assert httpx.post(service.url + "/webhooks/mlflow", content=b"{}", headers=forged).status_code == 401
            assert httpx.post(service.url + "/webhooks/mlflow", content=b"{}", headers=headers).status_code == 204
            wait_until(lambda: ask(service, "bot@hooked").status_code == 200, seconds=10)
        finally:
            registry.client.delete_registered_model_alias("bot", "hooked")
    finally:
        assert service.end() == 0


@pytest.mark.fault
def test_a_router_killed_while_its_engine_answers_leaves_nothing(service):
    """The last to ask the service that this file shares."""
    mark = str(service.log.parent)
    assert len(marked(mark)) >= 3
    request = body("bot@champion", stream=True, max_tokens=220, ignore_eos=True)
    with httpx.stream("POST", service.url + CHAT, json=request, timeout=60) as answer:
        next(answer.iter_lines())
        service.process.kill()
        wait_until(lambda: not marked(mark), seconds=15)
