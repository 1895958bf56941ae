"""Pictures of requests: what is read of them, and what clients, engines and logs get."""

import base64
import io
import json

import pytest
from PIL import Image
from shown_pictures import BLUE, RED, data_url, picture, picture_turn

from mlflow_finetune_plugin.images import Picture, PictureFault
from mlflow_finetune_plugin.serving.router import pictures
from mlflow_finetune_plugin.serving.router.pictures import bytes_of_pictures, read_pictures
from mlflow_finetune_plugin.serving.router.requests import RequestError, read_request

CHAT = "/v1/chat/completions"
SQUARE = picture(RED)


def checked(*turns, **fields):
    return read_request(CHAT, json.dumps({"model": "bot", "messages": list(turns), **fields}).encode())


def part(url="data:image/png;base64,AAAA", **fields):
    return {"type": "image_url", "image_url": {"url": url}, **fields}


def test_engines_get_the_same_pixels_as_png_and_the_body_has_a_hash_alone():
    photo = picture(BLUE, round_shape=True, kind="JPEG")
    turn = {"role": "user", "content": [{"type": "text", "text": "What?"}, part(data_url(photo, "jpeg"))]}
    request = checked({"role": "system", "content": "Be brief."}, turn, picture_turn("And this?", SQUARE))
    assert len(request.client_urls) == 2
    assert "base64" not in json.dumps(request.body)

    read = request.with_pictures(read_pictures(request.client_urls))

    assert read.client_urls == ()
    assert "base64" not in json.dumps(read.body)
    assert f"sha256:{photo.sha256}" in json.dumps(read.body)
    messages = read.for_engine("name", [])["messages"]
    assert messages[0] == {"role": "system", "content": "Be brief."}
    assert messages[1]["content"][0] == {"type": "text", "text": "What?"}
    assert messages[2]["content"][1] == {"type": "text", "text": "And this?"}
    urls = [messages[1]["content"][1]["image_url"]["url"], messages[2]["content"][0]["image_url"]["url"]]
    for url, expected in zip(urls, (photo, SQUARE), strict=True):
        sent = Picture.of(base64.b64decode(url.removeprefix("data:image/png;base64,")))
        assert sent.pixels().tobytes() == expected.pixels().tobytes()


def test_a_request_that_was_not_read_gives_an_engine_no_url_of_its_client():
    body = checked(picture_turn("What?", SQUARE)).for_engine("name", [])
    assert body["messages"][0]["content"][0]["image_url"]["url"] == "picture 1"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "assistant", "content": [part()]}, "a picture in a turn of the role assistant; fix"),
        ({"role": "system", "content": [part()]}, "a picture in a turn of the role system; fix"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png;base64,AAAA"}]}, "its URL"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "a picture without its URL"),
        ({"role": "user", "content": [part(7)]}, "a picture without its URL"),
        ({"role": "user", "content": [part(detail="low")]}, "a picture without its URL"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:", "detail": "low"}}]},
            "the base decides the size of pictures",
        ),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "'input_audio' is not supported"),
        ({"role": "user", "content": [part()] * 17}, "17 pictures, at most 16 are read; fix"),
    ],
)
def test_pictures_of_another_form_are_one_clear_error(turn, message):
    with pytest.raises(RequestError, match=message) as caught:
        checked(turn)
    assert caught.value.status == 400
    assert caught.value.param == "messages"
    assert "AAAA" not in str(caught.value)


def bomb(width, height):
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return Picture(stream.getvalue(), width, height, "")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/secret/cat.png", "not in the request: nothing is fetched"),
        ("file:///etc/passwd", "not in the request: nothing is fetched"),
        ("/etc/passwd", "not in the request"),
        ("a" * 64, "not in the request"),
        ("", "not in the request"),
        ("data:text/html;base64,PGI+SECRET", "a data URL of a picture begins with"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "not a picture in one of the formats"),
        ("data:image/png;base64,SECRET%%", "its base64 text is not valid"),
        (data_url(SQUARE)[:-60], "unreadable picture"),
        (data_url(bomb(8000, 6000)), "8,000 x 6,000 pixels; at most 40,000,000 are read"),
        ("data:image/png;base64," + "A" * (14 * 2**20), "over 10,485,760 bytes"),
    ],
)
def test_a_picture_that_cannot_be_used_is_an_error_without_any_of_it(url, message):
    with pytest.raises(PictureFault, match=message) as caught:
        read_pictures([data_url(SQUARE), url])
    assert str(caught.value).startswith("picture 2: ")
    assert not any(word in str(caught.value).lower() for word in ("secret", "passwd", "cat.png", "aaaa"))


@pytest.mark.bad_input
def test_pictures_that_are_too_large_together_are_refused():
    url = data_url(bomb(5000, 5000))
    assert len(read_pictures([url])) == 1
    with pytest.raises(PictureFault, match="picture 2: pictures too large: together over 40,000,000 pixels"):
        read_pictures([url, url])


def test_bytes_of_pictures_are_told_before_a_body_is_parsed():
    turns = [picture_turn("What?", SQUARE), picture_turn("And?", SQUARE)]
    raw = json.dumps({"model": "bot", "messages": turns}).encode()
    assert bytes_of_pictures(raw) == 2 * (len(data_url(SQUARE)) + 1)
    assert bytes_of_pictures(b'{"a": "data:image/' + b"x" * 50) == 62
    assert bytes_of_pictures(b'{"a": "data:image/", "b": [1, 2, 3]}') == 12


def test_a_request_holds_one_picture_of_the_largest_size():
    assert pictures.LIMITS.max_bytes * 4 / 3 + 100 < pictures.ROOM
