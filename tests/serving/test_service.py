"""A running service as its clients meet it: real engine, real registry, real HTTP."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import re
import socket
import time

import httpx
import mlflow
import psutil
import pytest
from served_models import QUESTIONS
from serving_process import CHAT, body, wait_until

from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, timeout=60) as made:
        yield made


# who answers ---------------------------------------------------------------------------------------------------------


def test_every_name_answers_and_says_who(client, registry):
    told = {}
    for name in ("bot@champion", "bot@challenger", "bot/1", "bot/2", "bot", "base", "embedded"):
        answer = client.post(CHAT, json=body(name))
        assert answer.status_code == 200, answer.text
        receipt = {key.removeprefix("x-finetune-"): v for key, v in answer.headers.items() if "x-finetune" in key}
        assert receipt.keys() == {"model", "version", "adapter-digest", "base-digest", "request-id"}
        assert receipt["base-digest"] == registry.digest
        told[name] = (receipt["model"], receipt["version"], answer.json()["choices"][0]["message"]["content"])
        digest = (
            registry.client.get_model_version("bot", receipt["version"]).tags["finetune.adapter_digest"]
            if (receipt["version"] != "base")
            else ""
        )
        assert receipt["adapter-digest"] == digest
    assert told["bot@champion"] == told["bot/1"] == told["bot"] == ("bot", "1", told["bot/1"][2])
    assert told["bot@challenger"] == told["bot/2"] == ("bot", "2", told["bot/2"][2])
    assert told["base"] == told["embedded"] == ("embedded", "base", told["base"][2])
    assert len({text for _, _, text in told.values()}) == 3


def test_answers_are_those_of_the_model_that_mlflow_loads(client):
    loaded = mlflow.pyfunc.load_model("models:/bot/2")
    expected = loaded.predict(list(QUESTIONS), params={"max_new_tokens": 8})
    given = [client.post(CHAT, json=body("bot/2", question)).json() for question in QUESTIONS]
    assert [answer["choices"][0]["message"]["content"] for answer in given] == list(expected)


def test_streamed_and_whole_answers_are_the_same(client):
    whole = client.post(CHAT, json=body("bot@champion")).json()
    with client.stream("POST", CHAT, json=body("bot@champion", stream=True)) as answer:
        lines = [line for line in answer.iter_lines() if line]
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-finetune-version"] == "1"
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert all(event["choices"] for event in events)  # the usage event was not asked for
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert text == whole["choices"][0]["message"]["content"]
    with client.stream("POST", CHAT, json=body("bot", stream=True, stream_options={"include_usage": True})) as answer:
        usages = [json.loads(line[6:])["usage"] for line in answer.iter_lines() if '"choices":[]' in line]
    assert usages == [whole["usage"]]


def test_openai_client_works(service):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    client = openai.OpenAI(base_url=service.url + "/v1", api_key="none")
    assert {"base", "bot", "bot@champion", "bot@challenger", "bot/1", "bot/2"} <= {m.id for m in client.models.list()}
    messages = [{"role": "user", "content": QUESTIONS[0]}]
    whole = client.chat.completions.create(model="bot@champion", messages=messages, max_tokens=8, temperature=0)
    parts = client.chat.completions.create(
        model="bot@champion", messages=messages, max_tokens=8, temperature=0, stream=True
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert whole.model.startswith("bot/1-")
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="bot@nobody", messages=messages)
    assert refused.value.body["code"] == "model_not_found"


# aliases -------------------------------------------------------------------------------------------------------------


def test_an_alias_moves_and_goes_while_a_running_answer_ends_as_it_began(client, registry, service):
    registry.client.set_registered_model_alias("bot", "moving", "1")
    version = lambda: client.post(CHAT, json=body("bot@moving")).headers.get("x-finetune-version")  # noqa: E731
    try:
        wait_until(lambda: version() == "1")
        long = body("bot@moving", stream=True, max_tokens=150, ignore_eos=True)
        with client.stream("POST", CHAT, json=long) as answer:
            lines = answer.iter_lines()
            first = [next(lines) for _ in range(3)]
            registry.client.set_registered_model_alias("bot", "moving", "2")
            wait_until(lambda: version() == "2")
            rest = [line for line in lines if line]
        models = {json.loads(line[6:])["model"] for line in [*first, *rest] if line.startswith("data: {")}
        assert len(models) == 1
        assert models.pop().startswith("bot/1-")
        assert rest[-1] == "data: [DONE]"
    finally:
        registry.client.delete_registered_model_alias("bot", "moving")
    gone = wait_until(lambda: client.post(CHAT, json=body("bot@moving")).status_code == 404)
    assert gone
    assert client.post(CHAT, json=body("bot@champion")).status_code == 200


def test_a_split_is_kept_and_a_user_stays(client, registry, service):
    registry.client.set_registered_model_tag("bot", "finetune.split", "champion=50, challenger=50")
    asked = lambda user: client.post(CHAT, json=body("bot", max_tokens=1, user=user)).headers["x-finetune-version"]  # noqa: E731
    try:
        wait_until(lambda: {asked(f"user {n}") for n in range(20)} == {"1", "2"})
        before = {f"user {n}": asked(f"user {n}") for n in range(20)}
        assert all(asked(user) == version for user, version in before.items())
    finally:
        registry.client.delete_registered_model_tag("bot", "finetune.split")
    wait_until(lambda: {asked(f"user {n}") for n in range(20)} == {"1"})


def test_shadow_traffic_is_seen_in_metrics_alone(client, registry):
    counted = lambda: re.findall(r'requests_total\{[^}]*shadow="true",version="2"\} (\S+)', client.get("/metrics").text)  # noqa: E731
    registry.client.set_registered_model_tag("bot", "finetune.shadow", "challenger")
    try:
        answers = []
        wait_until(lambda: answers.append(client.post(CHAT, json=body("bot@champion"))) or counted())
        assert {answer.headers["x-finetune-version"] for answer in answers} == {"1"}
    finally:
        registry.client.delete_registered_model_tag("bot", "finetune.shadow")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("no artifacts", "cannot be downloaded|has no finetune.json"),
        ("another digest", "its tag finetune.adapter_digest says"),
        ("another base", "its base embedded .* is not on this machine"),
    ],
)
def test_a_version_that_must_not_serve_leaves_the_last_good_one(client, registry, service, fault, said):
    made = registry.client.get_model_version("spare", registry.make("spare", seed=40 + len(fault)))
    model = registry.client.get_logged_model(made.source.removeprefix("models:/"))
    card = registry.artifacts("spare", made.version) / "finetune.json"
    if fault == "another base":
        told = json.loads(card.read_text())
        told["base_model"]["digest"] = "1" * 64
        card.write_text(json.dumps(told))
        registry.sign("spare", made.version)
    tags = dict(registry.client.get_model_version("spare", made.version).tags)
    if fault == "another digest":
        tags["finetune.adapter_digest"] = "0" * 64
    elif fault == "no artifacts":
        card.unlink()
    number = registry.client.create_model_version(
        "bot", made.source, run_id=made.run_id, tags=tags, model_id=model.model_id
    ).version
    registry.client.set_registered_model_alias("bot", "tried", "1")
    wait_until(lambda: client.post(CHAT, json=body("bot@tried")).headers.get("x-finetune-version") == "1")
    registry.client.set_registered_model_alias("bot", "tried", number)
    try:

        def fault_of():
            return next((a["fault"] for a in service.get("/readyz")[1]["aliases"] if a["alias"] == "tried"), None)

        assert re.search(said, wait_until(fault_of))
        assert service.get("/readyz")[1]["status"] == "degraded"
        assert client.post(CHAT, json=body("bot@tried")).headers["x-finetune-version"] == "1"
        assert client.post(CHAT, json=body(f"bot/{number}")).status_code in (404, 503)
        assert 'alias_behind{alias="tried",model="bot"} 1.0' in client.get("/metrics").text
    finally:
        registry.client.delete_registered_model_alias("bot", "tried")
    wait_until(lambda: service.status() == "ready")


# what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "status", "code"),
    [
        ({"model": "nobody"}, 404, "model_not_found"),
        ({"model": "bot/99"}, 404, "model_not_found"),
        ({"model": "bot@nobody"}, 404, "model_not_found"),
        ({"model": "../../etc/passwd"}, 404, "model_not_found"),
        ({"model": "bot@../../x"}, 404, "model_not_found"),
        ({"model": "bot\r\nx-injected: 1"}, 404, "model_not_found"),
        ({"model": None}, 400, "missing_model"),
        ({"model": ["bot"]}, 400, "invalid_type"),
        ({"prompt_logprobs": 1}, 400, "unknown_field"),
        ({"lora_path": "/etc"}, 400, "unknown_field"),
        ({"chat_template": "{{ 1 }}"}, 400, "unknown_field"),
        ({"mm_processor_kwargs": {}}, 400, "unknown_field"),
        ({"priority": 1}, 400, "unknown_field"),
        ({"stream_options": {"continuous_usage_stats": True}}, 400, "unknown_field"),
        ({"n": 1000}, 400, "invalid_value"),
        ({"messages": "hello"}, 400, "invalid_type"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}
                ]
            },
            400,
            "pictures_not_supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "url": "http://x"}]}]},
            400,
            "unsupported_content",
        ),
        ({"messages": [{"role": "user", "content": "x", "media": "file:///etc/passwd"}]}, 400, "unknown_field"),
    ],
)
def test_bad_requests_get_one_clear_error(client, changed, status, code):
    answer = client.post(CHAT, json={**body("bot"), **changed})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]
    assert "x-injected" not in answer.headers
    assert answer.headers["x-finetune-request-id"]


@pytest.mark.bad_input
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_request(client, raw):
    assert client.post(CHAT, content=raw).status_code == 400


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "route",
    [
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/embeddings",
        "/invocations",
        "/tokenize",
        "/load",
        "/docs",
        "/openapi.json",
        "/v1/chat/completions/../load_lora_adapter",
        "/health",
    ],
)
def test_other_routes_are_not_there(client, route):
    for answer in (client.post(route, json={}), client.get(route)):
        assert answer.status_code in (404, 405)
        assert answer.json()["error"]["code"] in ("unknown_route", "model_not_found")


def test_one_model_is_told_by_its_id(client):
    assert client.get("/v1/models/bot@champion").json()["id"] == "bot@champion"
    assert client.get("/v1/models/bot/2").json()["id"] == "bot/2"
    unknown = client.get("/v1/models/nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.bad_input
def test_a_body_of_100_mb_is_refused_before_it_is_read(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    connection.putrequest("POST", CHAT)
    connection.putheader("content-length", str(100_000_000))
    connection.endheaders()
    assert connection.getresponse().status == 413
    before = psutil.Process(service.process.pid).memory_info().rss
    chunked = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    parts = (b"x" * 65536 for _ in range(1600))
    try:
        chunked.request("POST", CHAT, body=parts, encode_chunked=True, headers={"transfer-encoding": "chunked"})
        assert chunked.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):
        assert next(parts, None) is not None  # it was cut off while much was still to come
    assert psutil.Process(service.process.pid).memory_info().rss - before < 20_000_000


@pytest.mark.bad_input
def test_headers_without_an_end_are_not_read(service, client):
    before = psutil.Process(service.process.pid).memory_info().rss
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as raw, contextlib.suppress(ConnectionError):
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX-Endless: ")
        for _ in range(1600):
            raw.sendall(b"x" * 65536)
        pytest.fail("100 MB of a header were taken")
    assert psutil.Process(service.process.pid).memory_info().rss - before < 20_000_000
    assert client.get("/healthz").status_code == 200


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"host": "evil.example"}, 421, "foreign_host"),
        ({"host": "evil.example", "origin": "http://evil.example"}, 421, "foreign_host"),
        ({"host": "127.0.0.1.evil.example:8000"}, 421, "foreign_host"),
        ({"host": "user@localhost"}, 421, "foreign_host"),
        ({"origin": "http://evil.example"}, 403, "foreign_origin"),
        ({"origin": "null"}, 403, "foreign_origin"),
        ({"sec-fetch-site": "cross-site"}, 403, "foreign_origin"),
    ],
)
def test_without_keys_pages_of_other_sites_are_refused(client, headers, status, code):
    """A page reaches 127.0.0.1 under its own name by DNS rebinding, or sends a simple request with its own origin."""
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", "/readyz"), ("GET", "/metrics")):
        answer = client.request(
            method, path, headers=headers, content=json.dumps(body("bot")) if method == "POST" else None
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert "; fix: " in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "[::1]:8000", "127.0.0.1"])
def test_this_machine_s_names_and_its_own_pages_are_answered(client, service, host):
    assert client.get("/v1/models", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.bad_input
def test_ten_thousand_unknown_names_cost_nothing(service, client):
    before = psutil.Process(service.process.pid).memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        codes = set(threads.map(lambda n: client.post(CHAT, json=body(f"nobody-{n}")).status_code, range(10_000)))
    assert codes == {404}
    assert psutil.Process(service.process.pid).memory_info().rss - before < 30_000_000
    assert client.post(CHAT, json=body("bot")).status_code == 200


@pytest.mark.bad_input
def test_a_webhook_without_a_secret_is_refused(client):
    assert client.post("/webhooks/mlflow", content=b"{}").status_code == 401


# clients that come and go --------------------------------------------------------------------------------------------


def in_flight(client):
    return sum(float(value) for value in re.findall(r"finetune_in_flight\{[^}]*\} (\S+)", client.get("/metrics").text))


@pytest.mark.parametrize("stream", [True, False])
def test_generation_stops_when_the_client_is_gone(client, service, stream):
    raw = json.dumps(body("bot@champion", stream=stream, max_tokens=200, ignore_eos=True, n=4)).encode()
    connection = socket.create_connection(("127.0.0.1", service.port))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
    connection.sendall(head.encode() + raw)
    wait_until(lambda: in_flight(client) > 0)
    connection.close()
    wait_until(lambda: in_flight(client) == 0, seconds=30)
    assert 'reason="client_gone"' in client.get("/metrics").text


def test_a_slow_client_holds_nobody_up(client, service):
    """Its answer is more than the buffers between take, so that the router has to wait for it."""
    told = {"stream": True, "max_tokens": 200, "ignore_eos": True, "n": 8, "logprobs": True, "top_logprobs": 20}
    raw = json.dumps(body("bot@champion", **told)).encode()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.connect(("127.0.0.1", service.port))
    slow.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
    started = time.monotonic()
    for _ in range(5):
        assert client.post(CHAT, json=body("bot@challenger")).status_code == 200
    assert time.monotonic() - started < 20
    with client.stream("POST", CHAT, json=body("bot@champion", **told)) as quick:
        size = len(quick.read())
    wait_until(lambda: in_flight(client) == 1, seconds=30)  # the slow one's answer waits for it
    received, last = 0, b""
    slow.settimeout(30)
    while b"[DONE]" not in last:
        read = slow.recv(65536)
        received, last = received + len(read), last[-10:] + read
    assert received >= size
    slow.close()
    wait_until(lambda: in_flight(client) == 0, seconds=30)


# what is told --------------------------------------------------------------------------------------------------------


def test_metrics_count_per_version(client):
    """A stream's are there a moment after its end: they are told when the connection is done with."""

    def counted():
        text = client.get("/metrics").text
        names = ("completion_tokens_total", "answer_seconds_count", "time_to_first_token_seconds_count")
        found = [
            re.findall(rf'^finetune_{name}\{{model="bot",version="2"\}} (\S+)', text, re.MULTILINE) for name in names
        ]
        return tuple(float(one[0]) if one else 0.0 for one in found)

    tokens, answers, streams = counted()
    used = client.post(CHAT, json=body("bot/2")).json()["usage"]["completion_tokens"]
    assert counted() == (tokens + used, answers + 1, streams)
    with client.stream("POST", CHAT, json=body("bot/2", stream=True)) as answer:
        assert answer.read()
    wait_until(lambda: counted() == (tokens + 2 * used, answers + 2, streams + 1), seconds=30)


def test_logs_hold_no_word_of_a_prompt_or_answer(client, service):
    secret = "xylophone zebra"
    answer = client.post(CHAT, json=body("bot@champion", question=secret))
    request_id = answer.headers["x-finetune-request-id"]
    log = wait_until(lambda: service.log.read_text() if request_id in service.log.read_text() else None)
    assert secret not in log
    said = json.loads(re.search(rf'answered (\{{"id": "{request_id}".*\}})', log).group(1))
    assert (said["model"], said["version"], said["alias"], said["failed"]) == ("bot", "1", "champion", None)
    assert said["completion_tokens"] == answer.json()["usage"]["completion_tokens"]


def test_certificates_are_written_where_the_version_is(registry, service):
    found = registry.client.get_model_version("bot", "1")
    assert found.tags["finetune.certificate.transformers.float32"].startswith("passed (transformers, ")
    path = "certificates/bot-1-transformers.float32.json"
    told = json.loads(mlflow.artifacts.load_text(f"runs:/{found.run_id}/{path}")) if found.run_id else None
    assert told["passed"]
    assert told["adapter_error"] < 1e-4 < told["effect"]
    assert 0 <= told["noise"] < 1e-4
    assert (told["gap"], told["precision"]) == (0.0, "float32")


def test_only_served_adapters_are_held(registry, service, client):
    store = AdapterStore(service.store)
    digest = registry.client.get_model_version("bot", "1").tags["finetune.adapter_digest"]
    assert digest in store.digests()
