"""Hostile answers, sides that break, endpoints that go: what the page then shows."""

import pytest
from compare_screen import SLOW_MS
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

HELD_OFF = """() => ({
  ran: window.hacked ?? null,
  scripts: document.querySelectorAll('.mf-chats script, .mf-chats iframe, .mf-chats object, .mf-chats form, .mf-chats svg script').length,
  handlers: [...document.querySelectorAll('.mf-chats *, #mf-status *, #mf-difference *, #mf-history *')]
    .filter(one => [...one.attributes].some(a => a.name.startsWith('on'))).length,
  links: [...document.querySelectorAll('.mf-chats a, #mf-difference a')].map(a => a.getAttribute('href') ?? '')
    .filter(href => href && !/^https?:/.test(href)),
})"""
NOTHING = {"ran": None, "scripts": 0, "handlers": 0, "links": []}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["attack", "breakout"])
def test_a_hostile_answer_is_only_text_wherever_it_is_shown(screen, name):
    page, asked = screen(held_off="Content Security Policy"), []
    page.page.on("request", lambda request: asked.append(request.url))
    page.compare(name, "base")
    page.ask(f"<img src=x onerror='window.hacked = 9'></div><script>window.hacked = 8</script> {name}")
    expect(page.page.locator(".mf-chats")).to_contain_text("THE END", timeout=SLOW_MS)
    assert page.page.evaluate(HELD_OFF) == NOTHING
    page.button("differ").click()
    expect(page.page.locator("#mf-difference")).to_contain_text("THE END", timeout=SLOW_MS)
    page.vote("both_bad")
    page.show_names()
    page.open_part("This session")
    page.button("share").click()
    link = page.status.get_by_role("link", name="this link")
    expect(link).to_be_visible(timeout=SLOW_MS)
    assert page.page.evaluate(HELD_OFF) == NOTHING
    assert [url for url in asked if not url.startswith((page.url, "data:", "blob:"))] == []
    other = screen("/" + link.get_attribute("href"))
    shared = other.page.get_by_role("region", name="shared conversation")
    expect(shared).to_contain_text("THE END")
    assert shared.locator("img, script, a, table").count() == 0
    assert other.page.evaluate("window.hacked ?? null") is None


def test_an_answer_without_end_or_spaces_stays_in_its_panel(screen):
    page = screen(viewport={"width": 375, "height": 740})
    page.compare("huge", "base")
    page.ask("go on")
    expect(page.page.locator(".mf-chats")).to_contain_text("THE END", timeout=SLOW_MS)
    assert not page.is_wider_than_the_window()
    boxes = [page.button("vote-left").bounding_box(), page.prompt.bounding_box()]
    assert all(box["height"] < 200 for box in boxes)
    page.vote("left")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unwell", "refused the request (HTTP 500)"),
        ("cut", "broke off its answer"),
        ("garbage", "broke off its answer"),
        ("broken", "broke off its answer"),
    ],
)
def test_a_side_that_breaks_is_told_on_its_side_alone(screen, name, said):
    page = screen()
    page.compare(name, "base")
    page.ask("are you well?")
    shown = [page.answer(place).inner_text() for place in (0, 1)]
    assert sum(said in text for text in shown) == 1
    assert sum(text.strip() == "the base says little" for text in shown) == 1
    assert name not in page.page.locator(".mf-chats").inner_text()
    expect(page.button("vote-left")).to_be_disabled()
    page.button("reveal").click()
    expect(page.side(0).locator("strong")).not_to_have_text("Answer A", timeout=SLOW_MS)
    assert {page.side(place).locator("strong").inner_text() for place in (0, 1)} == {name, "base"}


def test_a_side_that_has_nothing_to_say_can_lose(screen):
    page = screen()
    page.compare("empty", "base")
    page.ask("have you anything to say?")
    silent = next(place for place in (0, 1) if "gave an empty answer" in page.answer(place).inner_text())
    page.vote("right" if silent == 0 else "left")
    page.show_names()
    assert page.side(silent).locator("strong").inner_text() == "empty"


@pytest.mark.fault
def test_an_endpoint_that_dies_while_it_answers_holds_nobody_up_and_comes_back(screen, stand):
    page = screen()
    far = f"far [127.0.0.1:{stand.other.port}]"
    page.compare("steady", far)
    page.send("begin")
    expect(page.answer(0)).to_contain_text("two three", timeout=SLOW_MS)
    stand.other.kill()
    try:
        page.answered()
        expect(page.page.locator(".mf-chats").get_by_text("This side broke off its answer.")).to_have_count(
            1, timeout=SLOW_MS
        )
        shown = [page.answer(place).inner_text() for place in (0, 1)]
        assert max(len(text.split()) for text in shown) > 110, "the other side says all that it has to"
        expect(page.status).to_contain_text("did not answer completely")
        page.ask("are you there?")
        expect(page.page.locator(".mf-chats").get_by_text("This side cannot be reached.")).to_have_count(1)
    finally:
        stand.other.start()
    page.compare("base", far)
    page.ask("and now?")
    page.vote("left")


def test_a_prompt_that_is_refused_stays_and_says_why(screen):
    page = screen()
    page.send_refused("  ", "Write a prompt first.")
    page.send_refused("x" * 20_001, "The prompt has 20,001 characters; the limit is 20,000.")
    page.page.wait_for_timeout(1000)
    expect(page.status).to_contain_text("the limit is 20,000")


def test_a_page_that_is_loaded_again_begins_anew_and_its_votes_are_kept(screen, stand):
    page = screen()
    page.ask("before the reload")
    page.vote("left")
    page.page.reload()
    page.turns = 0
    expect(page.status).to_contain_text("Two models answer", timeout=SLOW_MS)
    expect(page.chat(0)).not_to_contain_text("before the reload")
    page.ask("after the reload")
    assert [vote.choice for vote in stand.votes("before the reload")] == ["left"]


def test_two_pages_of_one_browser_are_two_sessions(screen, stand):
    page = screen()
    other = type(page)(page.page.context.new_page(), page.url).open()
    page.send("asked here")
    other.send("asked there")
    for one in (page, other):
        one.answered()
    expect(page.chat(0)).not_to_contain_text("asked there")
    page.vote("left")
    expect(other.button("vote-left")).to_have_attribute("aria-pressed", "false")
    other.vote("right")
    (here,), (there,) = stand.votes("asked here"), stand.votes("asked there")
    assert (here.choice, there.choice) == ("left", "right")
    assert here.turn.session != there.turn.session
