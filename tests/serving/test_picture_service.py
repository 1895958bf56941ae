"""A running service with a base that sees beside one that does not: real engines, real registry, real HTTP."""

from __future__ import annotations

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx
import mlflow
import numpy as np
import pytest
from PIL import Image
from served_models import VersionMaker
from serving_process import CHAT, serving, wait_until
from shown_pictures import BLUE, GREEN, LANGUAGE_LAYERS, RED, VISION, data_url, holds_picture, picture, picture_turn

from mlflow_finetune_plugin.images import Picture

SQUARE, CIRCLE, BAR = picture(RED), picture(BLUE, round_shape=True), picture(GREEN, size=48)
TURNS = [
    [picture_turn("What shape is it?", SQUARE)],
    [picture_turn("What shape is it?", CIRCLE)],
    [{"role": "user", "content": "What shape is it?"}],
    [picture_turn("What colour is it?", BAR), {"role": "assistant", "content": "green"}, picture_turn("This?", SQUARE)],
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory, empty_store):
    """``shapes``: versions 1 and 2 see, version 3, its shadow, reads text only, and 4 has other pictures than in training.
    ``bot``: version 1 reads text only."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_store, folder / "mlflow.db")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        makers = [VersionMaker(f"sqlite:///{folder}/mlflow.db", VISION, "embedded-vision")]
        for seed in (1, 2):
            makers[0].make("shapes", seed=seed, target_modules=LANGUAGE_LAYERS)
        makers.append(VersionMaker(makers[0].uri))
        makers[1].make("shapes", seed=3)
        makers[1].make("bot", seed=1)
        number = makers[0].make("shapes", seed=4, target_modules=LANGUAGE_LAYERS)
        _swap_pictures(makers[0], number)
        client = makers[0].client
        client.set_registered_model_alias("shapes", "champion", "1")
        client.set_registered_model_alias("shapes", "challenger", "3")
        client.set_registered_model_tag("shapes", "finetune.shadow", "challenger")
        yield makers[0]
    mlflow.set_tracking_uri(before)


def _swap_pictures(maker, number):
    path = maker.artifacts("shapes", number) / "reference.json"
    reference = json.loads(path.read_text())
    turns = [turn for probe in reference["probes"] for turn in probe["messages"] if turn.get("pictures")]
    turns[0]["pictures"], turns[1]["pictures"] = turns[1]["pictures"], turns[0]["pictures"]
    path.write_text(json.dumps(reference))
    maker.sign("shapes", number)


@pytest.fixture(scope="module")
def service(tmp_path_factory, registry):
    folder = tmp_path_factory.mktemp("service")
    with serving(folder, registry.uri, "shapes", "bot", "--engine", "auto", "--poll", "0.2") as started:
        yield started


@pytest.fixture
def client(service):
    with httpx.Client(base_url=service.url, timeout=120) as opened:
        yield opened


def request(model, messages, **more):
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12, **more}


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


def test_answers_about_pictures_are_those_of_the_model_that_mlflow_loads(client):
    for number in ("1", "2"):
        loaded = mlflow.pyfunc.load_model(f"models:/shapes/{number}")
        expected = loaded.predict([{"messages": turns} for turns in TURNS], params={"max_new_tokens": 12})
        answers = [client.post(CHAT, json=request(f"shapes/{number}", turns)) for turns in TURNS]
        assert [text_of(answer) for answer in answers] == list(expected)
        assert answers[0].headers["x-finetune-version"] == number


def test_answers_are_the_same_among_others_and_in_a_stream(client):
    chats = [(model, turns) for model in ("shapes/1", "shapes/2", "embedded-vision") for turns in TURNS]
    alone = [text_of(client.post(CHAT, json=request(*chat))) for chat in chats]
    with ThreadPoolExecutor(len(chats)) as pool:
        together = list(pool.map(lambda chat: text_of(client.post(CHAT, json=request(*chat))), chats))
    assert together == alone
    assert "square" in alone[2 * len(TURNS)].lower()  # the base knows its shapes
    assert "circle" in alone[2 * len(TURNS) + 1].lower()
    streamed = ""
    with client.stream("POST", CHAT, json=request(*chats[0], stream=True)) as events:
        for line in events.iter_lines():
            if line.startswith("data: {"):
                streamed += json.loads(line[6:])["choices"][0]["delta"].get("content", "")
    assert streamed == alone[0]


@pytest.mark.bad_input
def test_what_reads_text_only_refuses_pictures_before_an_engine_gets_them(client):
    for model, name in (("bot/1", "bot/1"), ("shapes@challenger", "shapes/3"), ("embedded", "embedded")):
        answer = client.post(CHAT, json=request(model, TURNS[0]))
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "pictures_not_supported", "messages")
        assert error["message"].startswith(f"{name} reads text only; fix: send no pictures")
    assert client.post(CHAT, json=request("bot/1", TURNS[2])).status_code == 200


@pytest.mark.bad_input
def test_a_picture_that_cannot_be_used_is_one_clear_error(client):
    for url, message in [
        ("https://example.org/cat.png", "messages: picture 1: picture not in the request: nothing is fetched"),
        ("file:///etc/passwd", "messages: picture 1: picture not in the request"),
        (data_url(SQUARE)[:80], "messages: picture 1: unreadable picture"),
    ]:
        turn = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}
        answer = client.post(CHAT, json=request("shapes/1", [turn]))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_picture")
        assert answer.json()["error"]["message"].startswith(message)


@pytest.mark.bad_input
def test_a_body_may_be_large_by_its_pictures_alone(client):
    noise = np.random.default_rng(0).integers(0, 256, (1100, 1100, 3), dtype=np.uint8)
    large = Picture.of(_png(Image.fromarray(noise)))
    assert len(large.content) > 2_000_000
    answer = client.post(CHAT, json=request("shapes/1", [picture_turn("What is it?", large)]))
    assert answer.status_code == 200, answer.text
    long = client.post(CHAT, json=request("shapes/1", [picture_turn("a" * 1_100_000, SQUARE)]))
    assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")
    assert "without its pictures" in long.json()["error"]["message"]
    assert client.post(CHAT, content=b"x" * 30_000_000).status_code == 413


def _png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def test_the_model_list_says_what_sees(client):
    sees = {entry["id"]: entry.get("sees") for entry in client.get("/v1/models").json()["data"]}
    assert sees["shapes@champion"] is sees["shapes/1"] is sees["embedded-vision"] is True
    assert sees["bot@challenger"] is sees["shapes/3"] is sees["embedded"] is None


def test_a_version_is_certified_with_its_pictures(client):
    answer = client.post(CHAT, json=request("shapes/4", TURNS[0]))
    assert answer.status_code == 404
    assert "nats off" in answer.json()["error"]["message"]


def test_no_log_and_no_metric_has_a_picture_and_a_shadow_without_eyes_gets_none(client, service):
    def of_shadow():
        lines = [line for line in client.get("/metrics").text.splitlines() if 'version="3"' in line]
        assert not any(line.startswith("finetune_errors") for line in lines)
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("finetune_requests_total"))

    before = of_shadow()
    text_of(client.post(CHAT, json=request("shapes@champion", TURNS[0])))
    text_of(client.post(CHAT, json=request("shapes@champion", TURNS[2])))
    wait_until(lambda: of_shadow() > before)
    assert of_shadow() == before + 1  # the text
    written = [client.get("/metrics").text, service.log.read_text()]
    written += [log.read_text() for log in service.store.rglob("*.log*")]
    assert len(written) > 2
    for shape in (SQUARE, CIRCLE, BAR):
        assert not any(holds_picture(text, shape) for text in written)
    assert f'"pictures": ["{SQUARE.sha256[:12]}"]' in written[1]
