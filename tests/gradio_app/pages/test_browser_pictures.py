"""Pictures in a real browser: chosen, shown to both sides, voted on, and offered only where both sides read them."""

import base64
import json

import pytest
from compare_screen import SLOW_MS
from playwright.sync_api import expect
from shown_pictures import BLUE, RED, data_url, picture

from mlflow_finetune_plugin.images import read_picture

pytestmark = pytest.mark.browser

SQUARE, CIRCLE = picture(RED), picture(BLUE, round_shape=True, size=2400)


def file(name, shown):
    return {"name": name, "mimeType": "image/png", "buffer": shown.content}


def test_a_person_shows_pictures_to_both_sides_blind_and_votes(screen, stand):
    page = screen()
    expect(page.page.locator("#mf-picker")).to_be_hidden()  # champion and challenger read text only
    page.compare("painter one", "painter two")
    expect(page.page.locator("#mf-picker")).to_be_visible(timeout=SLOW_MS)
    chosen = page.page.locator("#mf-picked img")
    page.page.set_input_files(".mf-picker input", [file("square.png", SQUARE), file("circle.png", CIRCLE)])
    expect(chosen).to_have_count(2)
    page.page.get_by_label("Remove picture 2").click()
    expect(chosen).to_have_count(1)
    page.page.set_input_files(".mf-picker input", file("circle.png", CIRCLE))
    expect(chosen).to_have_count(2)
    stand.forget()
    page.ask("what do you see?")
    expect(chosen).to_have_count(0)
    expect(page.page.locator(".mf-pictures img")).to_have_count(2)
    assert page.page.eval_on_selector_all(".mf-pictures img", "all => all.every(img => img.naturalWidth > 0)")
    for position in (0, 1):
        expect(page.chat(position)).to_contain_text("[picture 1] [picture 2] what do you see?")

    left, right = stand.asked()
    assert left["messages"] == right["messages"]
    first, second, text = left["messages"][0]["content"]
    assert text == {"type": "text", "text": "what do you see?"}
    shown = [read_picture(part["image_url"]["url"], folder=None) for part in (first, second)]
    assert shown[0].pixels().tobytes() == SQUARE.pixels().tobytes()
    assert (shown[1].width, shown[1].height) == (1024, 1024)

    page.vote("left")
    (cast,) = stand.votes("\ufffc\ufffcwhat do you see?")
    assert cast.turn.messages[0]["pictures"] == [each.sha256 for each in shown]
    encoded = base64.b64encode(SQUARE.content).decode()
    assert encoded[40:80] not in json.dumps(cast.to_json())

    page.button("edit").click()
    expect(page.prompt).to_have_value("what do you see?", timeout=SLOW_MS)
    expect(chosen).to_have_count(2)
    page.ask("and now?")
    page.button("retry").click()
    page.speaking()
    page.answered()
    expect(page.page.locator(".mf-pictures img")).to_have_count(2)
    page.button("new").click()
    expect(page.page.locator(".mf-pictures img")).to_have_count(0)


@pytest.mark.bad_input
def test_a_file_that_is_no_picture_and_a_fifth_one_are_refused(screen, stand):
    page = screen()
    page.compare("painter one", "painter two")
    text = {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.page.set_input_files(".mf-picker input", text)
    expect(page.page.locator("#mf-picker-fault")).to_have_text("notes.png is not a picture that can be read.")
    page.page.set_input_files(".mf-picker input", [file(f"{number}.png", SQUARE) for number in range(5)])
    expect(page.page.locator("#mf-picker-fault")).to_have_text("A prompt takes at most 4 pictures.")
    expect(page.page.locator("#mf-picked img")).to_have_count(4)


@pytest.mark.bad_input
@pytest.mark.parametrize("url", ["https://example.org/a.png", "/etc/passwd", "data:image/png;base64,AAAA"])
def test_a_page_that_sends_something_else_gets_a_reason(screen, stand, url):
    page = screen()
    page.compare("painter one", "painter two")
    page.page.evaluate("url => { window.mfPictures = () => [url]; }", url)
    page.send_refused("what is it?", "Picture 1 cannot be used")


@pytest.mark.bad_input
def test_pictures_for_models_that_read_text_only_are_refused(screen, stand):
    page = screen()
    page.page.evaluate("url => { window.mfPictures = () => [url]; }", data_url(SQUARE))
    page.send_refused("what is it?", "One of these models reads text only")
