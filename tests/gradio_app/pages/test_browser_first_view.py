"""What is in view without scrolling: the head and the tabs on opening, the answers and the votes after a prompt."""

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
CHOICES = ("left", "tie", "both_bad", "right")


def box(locator):
    found = locator.bounding_box()
    return found["x"], found["y"], found["x"] + found["width"], found["y"] + found["height"]


def assert_in_view(locator, viewport):
    left, top, right, bottom = box(locator)
    assert left >= 0, (left, top, right, bottom)
    assert top >= 0, (left, top, right, bottom)
    assert right <= viewport["width"], (left, top, right, bottom)
    assert bottom <= viewport["height"], (left, top, right, bottom)


@pytest.mark.parametrize("profile", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_opens_at_its_top_with_the_tabs_in_view(screen, profile):
    page = screen(**profile)
    page.page.wait_for_timeout(1000)  # a late focus would scroll by now
    assert page.page.evaluate("window.scrollY") == 0
    assert_in_view(page.page.locator(".mf-head h1"), profile["viewport"])
    assert_in_view(page.page.get_by_role("tab", name="Compare"), profile["viewport"])


@pytest.mark.parametrize("profile", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_short_answers_and_the_votes_are_in_view_together(screen, profile):
    page, viewport = screen(**profile), profile["viewport"]
    page.compare("base", "bot/1")
    page.prompt.scroll_into_view_if_needed()
    page.prompt.fill("Which colour is it?")
    page.button("send").click()
    page.speaking()
    page.answered()
    votes_top = min(box(page.button(f"vote-{choice}"))[1] for choice in CHOICES)
    for choice in CHOICES:
        assert_in_view(page.button(f"vote-{choice}"), viewport)
        expect(page.button(f"vote-{choice}")).to_be_enabled()
    for position in (0, 1):
        assert_in_view(page.answer(position), viewport)
        assert box(page.answer(position))[1] < votes_top, "the votes cover no answer's beginning"
    assert not page.is_wider_than_the_window()


def test_a_phone_shows_every_tab_and_its_head_without_an_overlap(screen):
    page = screen(**PHONE)
    for name in ("Compare", "Standings", "Runs", "Data"):
        assert_in_view(page.page.get_by_role("tab", name=name), PHONE["viewport"])
    assert box(page.page.locator(".mf-head h1"))[2] <= box(page.page.locator("#mf-theme"))[0]


def test_on_a_desktop_the_prompt_is_in_view_below_the_votes(screen):
    page = screen(**DESKTOP)
    assert_in_view(page.prompt, DESKTOP["viewport"])
    expect(page.prompt).to_be_focused()
