"""Settings, sides, prompt sets: what a person changes, and what the endpoints are then asked."""

import pytest
from compare_screen import SLOW_MS
from playground_stand import PROMPTS
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


def test_settings_reach_both_sides_alike(screen, stand):
    page = screen()
    page.open_part("Settings")
    page.page.locator("#mf-system textarea").fill("be brief")
    page.page.get_by_label("number input for Temperature").fill("0.7")
    page.page.get_by_label("number input for Top p").fill("0.9")
    for field, text in (("max-tokens", "33"), ("seed", "seven")):
        page.page.locator(f"#mf-{field}").locator("input, textarea").fill(text)
    page.send_refused("set", "Seed is 'seven'; write a whole number, or leave the field empty.")
    page.page.locator("#mf-seed").locator("input, textarea").fill("7")
    page.page.keyboard.press("Tab")
    stand.forget()
    page.ask("set")
    one, other = stand.asked()
    assert {one["model"], other["model"]} == {"bot@champion", "bot@challenger"}
    for asked in (one, other):
        told = {name: asked[name] for name in ("temperature", "top_p", "max_tokens", "seed")}
        assert told == {"temperature": 0.7, "top_p": 0.9, "max_tokens": 33, "seed": 7}
        assert asked["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "set"}]


def test_fields_that_are_only_looked_at_change_nothing(screen, stand):
    page = screen()
    page.open_part("Settings")
    page.button("choose").click()
    expect(page.page.locator("#mf-side-choice-0 input")).to_be_visible(timeout=SLOW_MS)
    stand.forget()
    page.ask("only looked")
    assert {"seed", "max_tokens"} & set(stand.asked()[0]) == set()
    page.page.locator("#mf-max-tokens").locator("input, textarea").fill("7")
    stand.forget()
    page.ask("with a limit")
    assert stand.asked()[0]["max_tokens"] == 7


@pytest.mark.parametrize("names", [("base", "bot/1", "fast"), ("base", "bot/1", "fast", "bot@challenger")])
def test_three_and_four_sides_are_compared_and_not_voted_on(screen, names):
    page = screen()
    page.compare(*names)
    expect(page.status).to_contain_text("A vote needs exactly two sides", timeout=SLOW_MS)
    page.ask("all of you")
    for place in range(4):
        expect(page.chat(place)).to_be_visible(visible=place < len(names))
    shown = [page.answer(place).inner_text().strip() for place in range(len(names))]
    assert all(shown)
    assert {"one", "the base says little"} <= set(shown)
    expect(page.button("vote-left")).to_be_disabled()
    page.button("reveal").click()
    told = {"one": "bot/1", "the base says little": "base"}
    for place, text in enumerate(shown):
        name = page.side(place).locator("strong")
        expect(name).not_to_contain_text("Answer", timeout=SLOW_MS)
        assert name.inner_text() == told.get(text, name.inner_text())
    assert {page.side(place).locator("strong").inner_text() for place in range(len(names))} == set(names)


def test_shown_names_have_settings_of_their_own_and_take_no_votes(screen, stand):
    page = screen()
    page.open_part("Settings")
    page.page.get_by_label("Names shown").check()
    expect(page.status).to_contain_text("Names are shown, so you cannot vote.", timeout=SLOW_MS)
    page.button("choose").click()
    page.choose("side-choice-0", "base")
    page.choose("side-choice-1", "bot/1")
    page.page.get_by_label("Temperature", exact=True).first.fill("1.5")
    page.button("apply").click()
    expect(page.page.locator("#mf-side-choice-0")).to_be_hidden(timeout=SLOW_MS)
    stand.forget()
    page.ask("openly")
    expect(page.side(0).locator("strong")).to_have_text("base")
    expect(page.side(1).locator("strong")).to_have_text("bot/1")
    assert {asked["model"]: asked["temperature"] for asked in stand.asked()} == {"base": 1.5, "bot/1": 0.0}
    expect(page.button("vote-left")).to_be_disabled()


def test_names_of_the_choice_leave_the_page_with_it(screen):
    page = screen()
    page.compare("bot@challenger", "bot@champion")
    page.ask("who?")
    assert "bot@ch" not in page.page.content()


def test_a_choice_of_sides_that_is_refused_stays_to_be_mended(screen):
    page = screen()
    page.open_part("Settings")
    page.button("choose").click()
    page.choose("side-choice-0", "base")
    page.choose("side-choice-1", "base")
    page.button("apply").click()
    expect(page.status).to_contain_text("Choose two to four different sides.", timeout=SLOW_MS)
    expect(page.page.locator("#mf-side-choice-1 input")).to_have_value("base")
    page.choose("side-choice-1", "bot@champion")
    page.button("apply").click()
    expect(page.page.locator("#mf-side-choice-1")).to_be_hidden(timeout=SLOW_MS)
    expect(page.status).to_contain_text("Two models answer")


def test_a_set_is_walked_by_itself_with_references_after_the_vote(screen, stand):
    page = screen()
    page.open_part("Prompt set")
    page.page.get_by_label("Advance automatically after each vote").check()
    page.page.locator("#mf-auto").press("Tab")
    seen = []
    expect(page.status).not_to_be_in_viewport()
    page.button("next").click()
    expect(page.status).to_be_in_viewport(ratio=0.9)
    for place in range(len(PROMPTS)):
        page.speaking()
        page.answered()
        expect(page.page.locator("#mf-reference")).to_contain_text("The reference answer appears after your vote.")
        question = page.chat(0).locator(".user.message, .message.user").last.inner_text().strip()
        assert "wanted answer" not in page.page.content()
        seen.append(question)
        expect(page.page.locator("#mf-progress")).to_contain_text(f"Prompt {place + 1} of {len(PROMPTS)}")
        page.vote("left")
        expect(page.page.locator("#mf-reference")).to_contain_text(f"the wanted answer {question[-1]}")
    assert sorted(seen) == [row["prompt"] for row in PROMPTS]
    expect(page.status).to_contain_text("all", timeout=SLOW_MS, ignore_case=True)
    (cast,) = stand.votes(seen[0])
    assert cast.turn.prompt_set == "questions"
