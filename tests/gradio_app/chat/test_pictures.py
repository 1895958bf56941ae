"""Pictures of a comparison: read once, sent to both sides alike, and refused where a side reads text only."""

import io
import random

import pytest
from PIL import Image
from shown_pictures import BLUE, RED, data_url, picture

from gradio_app.chat import session as session_module
from gradio_app.chat.client import Endpoint
from gradio_app.chat.html import history_view, panels, pictures_view
from gradio_app.chat.pictures import MOST_PICTURES, PictureError, numbered, read_pictures, request_messages
from gradio_app.chat.session import Contender, Prompt, Session, SessionError
from mlflow_finetune_plugin.images import Picture, read_picture

HERE = Endpoint("http://127.0.0.1:1/v1")
ONE, TWO = (Contender(name, HERE, name, sees=True) for name in ("bot@champion", "bot@challenger"))
TEXT_ONLY = Contender("base", HERE, "base")
SQUARE, CIRCLE = data_url(picture(RED)), data_url(picture(BLUE, round_shape=True))


def session(*contenders):
    return Session(contenders or (ONE, TWO), _random=random.Random(7))


def ask(of, text, *urls):
    turn = of.begin(Prompt(text, pictures=of.hold(read_pictures(urls))))
    for answer in turn.answers:
        answer.add("an answer")
        answer.ended_at = 1.0
    return turn


def test_messages_hold_hashes_and_requests_hold_the_pictures():
    of = session()
    first = ask(of, "What is it?", SQUARE)
    (name,) = first.messages[0]["pictures"]
    assert first.messages == ({"role": "user", "content": "\ufffcWhat is it?", "pictures": [name]},)
    second = ask(of, "And these?", CIRCLE, SQUARE)
    sent = request_messages(second.messages, of.pictures)
    parts = [part for message in sent if isinstance(message["content"], list) for part in message["content"]]
    assert [part["type"] for part in parts] == ["image_url", "text", "image_url", "image_url", "text"]
    shown = [read_picture(part["image_url"]["url"], folder=None) for part in parts if part["type"] == "image_url"]
    assert [each.sha256 for each in shown] == [name, second.messages[-1]["pictures"][0], name]
    expected = [picture(RED), picture(BLUE, round_shape=True), picture(RED)]
    assert [each.pixels().tobytes() for each in shown] == [each.pixels().tobytes() for each in expected]
    assert "base64" not in str(of.export())


def test_a_picture_changes_what_a_prompt_is():
    of, other = session(), session()
    assert ask(of, "What is it?", SQUARE).messages_digest != ask(other, "What is it?", CIRCLE).messages_digest


def test_the_page_shows_pictures_by_number():
    of = session()
    ask(of, "What is it?", SQUARE)
    turn = ask(of, "And <b>this</b>?", CIRCLE)
    page = pictures_view(of)
    assert page.count("<img") == 2
    assert [f"Picture {number}" in page for number in (1, 2, 3)] == [True, True, False]
    texts = [message["content"] for message in panels(of, turn)[0] if message["role"] == "user"]
    assert texts[0] == "[picture 1] What is it?"
    assert texts[1].startswith("[picture 2] And ")
    assert "[1 picture] What is it?" in history_view(of)
    assert pictures_view(session()) == ""


def test_texts_without_pictures_keep_what_looks_like_a_mark():
    turn = {"role": "user", "content": "a \ufffc b"}
    assert numbered([turn]) == [turn]
    assert ask(session(), "a \ufffc b").messages == (turn,)
    assert ask(session(), "a \ufffc b", SQUARE).messages[0]["content"] == "\ufffca  b"


def test_a_side_that_reads_text_only_refuses_pictures_without_being_named():
    of = session(ONE, TEXT_ONLY)
    with pytest.raises(SessionError, match="One of these models reads text only") as refused:
        of.begin(Prompt("What is it?", pictures=of.hold(read_pictures([SQUARE]))))
    assert not of.turns
    assert not any(name in str(refused.value) for name in ("bot", "base"))
    ask(of, "What is it?")


def test_earlier_pictures_count_for_the_side_too():
    of = session()
    ask(of, "What is it?", SQUARE)
    of.contenders = (ONE, TEXT_ONLY)
    with pytest.raises(SessionError, match="reads text only"):
        ask(of, "And now?")


def test_a_conversation_has_a_limit_and_drops_pictures_of_turns_that_were_undone(monkeypatch):
    of = session()
    ask(of, "What is it?", SQUARE)
    of.undo()
    ask(of, "What is it?", CIRCLE)
    assert len(of.pictures) == 1
    for _ in range(3):
        ask(of, "More", *[SQUARE] * MOST_PICTURES)
    with pytest.raises(SessionError, match="17 pictures; the limit is 16"):
        ask(of, "More", *[SQUARE] * MOST_PICTURES)
    assert not of.successor(None).pictures
    of.turns = of.turns[:1]
    monkeypatch.setattr(session_module, "MOST_CHARACTERS", 2 * len(SQUARE))
    with pytest.raises(SessionError, match="too large together"):
        ask(of, "More", SQUARE, SQUARE)
    assert of.pictures


def test_a_large_picture_is_scaled_and_a_turned_one_is_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.new("RGB", (3000, 1000), RED).save(stream, "JPEG", exif=exif)
    (shown,) = read_pictures([data_url(Picture.of(stream.getvalue()), "jpeg")])
    sent = read_picture(shown.url, folder=None)
    assert (sent.width, sent.height) == (341, 1024)
    assert sent.sha256 == shown.name
    assert len(shown.thumbnail) < 20_000


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
        "data:image/png;base64,AAAA",
        "",
        None,
        {"path": "/etc/passwd"},
    ],
)
def test_what_is_no_picture_is_refused(url):
    with pytest.raises(PictureError, match=r"Picture 2 cannot be used: .*Choose a PNG, JPEG or WebP file"):
        read_pictures([SQUARE, url])


@pytest.mark.bad_input
def test_too_many_pictures_are_refused_before_they_are_read():
    with pytest.raises(PictureError, match="5 pictures; a prompt takes at most 4"):
        read_pictures(["x"] * 5)
