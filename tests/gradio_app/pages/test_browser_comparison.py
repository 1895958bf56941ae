"""What a person does on the first tab, in a real browser on the real command: asks, votes, changes their mind, looks back."""

import json
import re

import pytest
from compare_screen import SLOW_MS
from conftest import wait_for
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowUp": "tie", "ArrowDown": "both_bad"}


def test_a_blind_conversation_with_every_vote_by_key_and_by_mouse(screen, stand):
    page = screen()
    expect(page.status).to_contain_text("Two models answer with hidden names.")
    for key, choice in KEYS.items():
        page.ask(f"by key {choice}")
        expect(page.status).to_contain_text("Which answer is better?")
        assert {page.answer(place).inner_text().strip()[-5:] for place in (0, 1)} == {"first", "econd"}
        page.page.keyboard.press(key)
        page.voted(choice)
    for choice in KEYS.values():
        page.ask(f"by mouse {choice}")
        page.vote(choice)
    for how in ("key", "mouse"):
        assert [stand.votes(f"by {how} {choice}")[0].choice for choice in KEYS.values()] == list(KEYS.values())
    expect(page.chat(0)).to_contain_text("by key left")
    page.open_part("This session")
    rows = page.page.locator("#mf-history tbody tr")
    expect(rows).to_have_count(8)
    assert rows.nth(0).inner_text().split("\t")[1:] == ["by mouse both_bad", "Both are bad", "hidden", "hidden"]
    page.show_names()
    for row in range(8):
        assert set(rows.nth(row).inner_text().split("\t")[3:]) == {"bot@champion", "bot@challenger"}


def test_a_vote_changes_until_names_are_shown_and_then_stands(screen, stand):
    page = screen()
    page.ask("to be changed")
    page.vote("left")
    page.vote("tie")
    expect(page.button("vote-left")).to_have_attribute("aria-pressed", "false")
    expect(page.status).to_contain_text("You can change it")
    page.show_names()
    said = page.status.inner_text()
    names = re.search(r"A was (\S+), B was (\S+)\. The vote is final", said).groups()
    assert set(names) == {"bot@champion", "bot@challenger"}
    for place, name in enumerate(names):
        version = {"bot@champion": "1", "bot@challenger": "2"}[name]
        expect(page.side(place)).to_contain_text(f"bot/{version}, adapter aaaaaaaaaaa")
        expect(page.side(place)).to_contain_text("44 out")
    for choice in KEYS.values():
        expect(page.button(f"vote-{choice}")).to_be_disabled()
    page.page.keyboard.press("ArrowLeft")
    page.page.wait_for_timeout(500)  # nothing happens
    cast = stand.votes("to be changed")
    assert [(vote.choice, vote.revision) for vote in cast] == [("left", 1), ("tie", 2)]
    assert [{"1": "bot@champion", "2": "bot@challenger"}[side.receipt.version] for side in cast[1].sides] == list(names)
    page.open_part("Why?")
    page.page.get_by_label("helpful").check()
    page.page.locator("#mf-comment textarea").fill("it <b>listens</b>")
    page.button("explain").click()
    expect(page.page.get_by_label("helpful")).to_be_checked()
    expect(page.status).to_contain_text("The vote is final")
    wait_for(lambda: len(stand.votes("to be changed")) == 3, 20, "third revision")
    last = stand.votes("to be changed")[-1]
    assert (last.choice, last.reasons, last.comment) == ("tie", ("helpful",), "it <b>listens</b>")


def test_names_cannot_be_had_before_the_vote(screen):
    page = screen()
    page.ask("who is who?")
    expect(page.button("reveal")).to_be_disabled()
    expect(page.side(0)).to_have_text("Answer Aname can be shown after your vote")


def test_retry_edit_and_undo(screen, stand):
    page = screen()
    page.ask("the first question")
    page.vote("left")
    page.ask("the second question")
    stand.forget()
    page.button("retry").click()
    page.speaking()
    page.answered()
    assert {asked["messages"][-1]["content"] for asked in stand.asked()} == {"the second question"}
    assert len(stand.asked()) == 2
    page.button("edit").click()
    expect(page.prompt).to_have_value("the second question", timeout=SLOW_MS)
    expect(page.chat(0)).not_to_contain_text("the second question")
    expect(page.status).to_contain_text("Your vote: A is better")
    page.ask("the second question, put better")
    expect(page.chat(1)).to_contain_text("put better")
    page.button("undo").click()
    expect(page.chat(1)).not_to_contain_text("put better", timeout=SLOW_MS)
    expect(page.chat(1)).to_contain_text("the first question")
    page.button("undo").click()
    expect(page.chat(0)).to_contain_text("Answer A appears here.", timeout=SLOW_MS)
    for name in ("retry", "edit", "undo", "differ", "export", "share"):
        expect(page.button(name)).to_be_disabled()


def test_stop_keeps_what_was_shown_and_the_conversation_goes_on(screen):
    page = screen()
    page.compare("endless", "endless and slow")
    page.send("tell me everything")
    expect(page.answer(0)).to_contain_text("two three", timeout=SLOW_MS)
    expect(page.button("send")).to_be_disabled()
    page.button("stop").click(no_wait_after=True)
    page.answered()
    expect(page.status).to_contain_text("Stopped. Retry, or send another prompt.")
    for side in (0, 1):
        expect(page.answer(side)).to_contain_text("Stopped.", timeout=SLOW_MS)
    shown = [page.answer(place).inner_text() for place in (0, 1)]
    assert shown[0] == shown[1], "not even by its length"
    expect(page.button("vote-left")).to_be_disabled()
    page.compare("bot@champion", "bot@challenger")
    page.ask("and now?")
    page.vote("right")


def test_differences_mark_what_one_side_alone_says(screen):
    page = screen()
    page.ask("compare")
    page.button("differ").click()
    found = page.page.locator("#mf-difference")
    expect(found.locator("mark")).to_have_count(2, timeout=SLOW_MS)
    assert set(found.locator("mark").all_inner_texts()) == {"first", "second"}


def test_an_export_tells_names_of_what_is_no_longer_blind_alone(screen):
    page = screen()
    page.ask("what is kept?")
    blind = json.loads(page.download("export").read_text())
    assert "champion" not in json.dumps(blind)
    assert [set(answer) for answer in blind["turns"][0]["answers"]] == [{"side", "content"}] * 2
    page.vote("both_bad")
    page.show_names()
    (turn,) = json.loads(page.download("export").read_text())["turns"]
    assert turn["vote"] == "both_bad"
    assert turn["messages"] == [{"role": "user", "content": "what is kept?"}]
    assert {answer["model"] for answer in turn["answers"]} == {"bot@champion", "bot@challenger"}
    assert {answer["receipt"]["version"] for answer in turn["answers"]} == {"1", "2"}


def test_a_link_shows_the_conversation_in_another_page(screen):
    page = screen()
    page.ask("shared <b>question</b>")
    page.vote("tie")
    page.button("share").click()
    link = page.status.get_by_role("link", name="this link")
    expect(link).to_be_visible(timeout=SLOW_MS)
    other = screen("/" + link.get_attribute("href"))
    shared = other.page.get_by_role("region", name="shared conversation")
    expect(shared).to_contain_text("shared <b>question</b>")
    expect(shared).to_contain_text("so says the first")
    expect(shared).to_contain_text("A tie")
    assert "bot@" not in other.page.content()
    gone = screen("/?shared=" + "x" * 32)
    expect(gone.page.locator("#mf-shared")).to_contain_text("The conversation of this link was deleted.")
