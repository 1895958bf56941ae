"""Nothing moves under the pointer, every width, both themes, without a mouse."""

import re

import pytest
from compare_screen import SLOW_MS
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PHONE = {"width": 375, "height": 740}
WATCHED = ("mf-vote-left", "mf-vote-right", "mf-reveal", "mf-prompt", "mf-send", "mf-chat-0", "mf-retry")
WATCH = """ids => {
  window.mfSeen = Object.fromEntries(ids.map(id => [id, []]));
  const look = () => {
    for (const id of ids) {
      const r = document.getElementById(id).getBoundingClientRect();
      window.mfSeen[id].push([r.x + scrollX, r.y + scrollY, r.width, r.height]);
    }
    requestAnimationFrame(look);
  };
  look();
}"""
CONTRAST = """([selector, minimum]) => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
  const paper = found => {
    for (let one = found; one; one = one.parentElement) {
      const [r, g, b, a = 1] = rgb(getComputedStyle(one).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll(selector)].filter(one => one.offsetParent && one.innerText.trim() && !one.disabled).map(one => {
    const [a, b] = [light(rgb(getComputedStyle(one).color)), light(paper(one))];
    return [one.innerText.trim().slice(0, 40), (Math.max(a, b) + .05) / (Math.min(a, b) + .05)];
  }).filter(([_, ratio]) => ratio < minimum);
}"""
READ = ".mf-notice, .mf-soft, .mf-side *, .message *, h1, button, label, [role=tab], .mf-table *"


@pytest.mark.parametrize("size", [{"width": 1280, "height": 900}, PHONE])
def test_nothing_moves_while_answers_come_nor_at_the_vote_nor_when_names_are_shown(screen, size):
    page = screen(viewport=size)
    page.page.evaluate(WATCH, list(WATCHED))
    for prompt in ("first", "second"):
        page.ask(f"{prompt} of {size['width']}")  # not a prompt whose answers were seen with names
        page.vote("right")
        page.show_names()
    seen = page.page.evaluate("window.mfSeen")
    for name, boxes in seen.items():
        assert len(boxes) > 20
        for side in range(4):
            values = [box[side] for box in boxes]
            assert max(values) - min(values) <= 2, (name, ["x", "y", "width", "height"][side], set(values))


def test_on_a_phone_nothing_is_beyond_the_edge_and_every_button_can_be_pressed(screen):
    page = screen(viewport=PHONE, has_touch=True, is_mobile=True)
    assert not page.is_wider_than_the_window()
    page.ask("word " * 60 + "x" * 300)
    assert not page.is_wider_than_the_window()
    for choice in ("left", "right", "tie", "both_bad"):
        page.button(f"vote-{choice}").tap()
        page.voted(choice)
    page.button("reveal").tap()
    expect(page.status).to_contain_text(" was ", timeout=SLOW_MS)
    page.button("differ").tap()
    expect(page.page.locator("#mf-difference mark").first).to_be_visible(timeout=SLOW_MS)
    assert not page.is_wider_than_the_window()
    for title in ("Why?", "Prompt set", "Settings", "This session"):
        page.open_part(title)
    page.button("choose").tap()
    expect(page.page.locator("#mf-side-choice-0 input")).to_have_value(re.compile("bot@"), timeout=SLOW_MS)
    assert not page.is_wider_than_the_window()
    for button in page.page.get_by_role("button").all():
        if button.is_visible() and button.is_enabled():
            button.scroll_into_view_if_needed()
            box = button.bounding_box()
            assert box["x"] >= 0, button
            inside = button.evaluate("one => Boolean(one.closest('.mf-chats, .mf-scroll'))")
            assert inside or box["x"] + box["width"] <= 375, button.inner_text()
    for tab in ("Standings", "Runs", "Data"):
        page.open_tab(tab)
        page.page.wait_for_timeout(1500)
        assert not page.is_wider_than_the_window(), tab


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read_in_light_and_dark(screen, scheme):
    page = screen(color_scheme=scheme)
    assert page.page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    assert page.page.evaluate(CONTRAST, [READ, 4.5]) == []
    page.ask(f"look at {scheme}")
    assert page.page.evaluate(CONTRAST, [READ, 4.5]) == []
    page.vote("tie")
    page.show_names()
    for title in ("Why?", "Prompt set", "Settings", "This session"):
        page.open_part(title)
    page.page.wait_for_timeout(500)
    assert page.page.evaluate(CONTRAST, [READ, 4.5]) == []


def test_the_theme_is_changed_by_its_button(screen):
    page = screen(color_scheme="light")
    ink = "getComputedStyle(document.querySelector('h1')).color"
    light = page.page.evaluate(ink)
    page.page.get_by_role("button", name="Light or dark").click()
    page.page.wait_for_function("document.body.classList.contains('dark')", timeout=SLOW_MS)
    expect(page.status).to_contain_text("models answer", timeout=SLOW_MS)
    assert page.page.evaluate(ink) != light


def test_everything_is_done_without_a_mouse(screen):
    page = screen()
    focused = "document.activeElement.closest('[id^=mf-]')?.id ?? document.activeElement.tagName"
    expect(page.prompt).to_be_focused()
    page.page.keyboard.type("by keys alone")
    page.page.keyboard.press("Enter")
    page.speaking()
    page.answered()
    expect(page.prompt).to_be_focused()
    page.page.keyboard.press("ArrowUp")
    page.voted("tie")
    order = []
    page.page.locator("#mf-theme").focus()
    for _ in range(40):
        page.page.keyboard.press("Tab")
        order.append(page.page.evaluate(focused))
    reached = [name for name in dict.fromkeys(order) if name.startswith("mf-")]
    wanted = ["mf-chat-0", "mf-chat-1", "mf-vote-left", "mf-vote-tie", "mf-vote-both_bad", "mf-vote-right", "mf-reveal"]
    wanted += ["mf-prompt", "mf-send", "mf-retry", "mf-edit", "mf-undo", "mf-new", "mf-differ", "mf-export", "mf-share"]
    assert [name for name in reached if name in wanted] == wanted
    page.button("reveal").focus()
    page.page.keyboard.press("Shift+Tab")
    page.page.keyboard.press("Tab")
    outline = page.button("reveal").evaluate(
        "one => [getComputedStyle(one).outlineStyle, getComputedStyle(one).outlineWidth]"
    )
    assert outline == ["solid", "3px"]
    page.page.keyboard.press("Enter")
    expect(page.status).to_contain_text(" was ", timeout=SLOW_MS)
    page.button("undo").focus()
    page.page.keyboard.press("ArrowLeft")
    page.page.wait_for_timeout(300)
    assert page.controls["voted"] == "tie"


def test_what_changes_is_told_to_those_who_do_not_see(screen):
    page = screen()
    assert page.page.locator("#mf-status").get_attribute("aria-live") == "polite"
    page.ask("aloud")
    for place, name in enumerate(("A", "B")):
        expect(page.chat(place).get_by_role("log")).to_have_attribute("aria-label", f"Answer {name}")
    for choice in ("left", "right", "tie", "both_bad"):
        expect(page.button(f"vote-{choice}")).to_have_attribute("aria-pressed", "false")
    unnamed = page.page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')].filter(one => one.offsetParent && !(one.innerText.trim() "
        "|| one.ariaLabel || one.labels?.length || one.title)).map(one => one.outerHTML.slice(0, 200))"
    )
    assert unnamed == []
