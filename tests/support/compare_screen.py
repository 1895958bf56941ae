"""The first tab of the playground, as somebody at the browser sees and presses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect

SLOW_MS = 20_000
ANSWERED = "() => { const s = document.querySelector('#mf-status [data-mf]'); if (!s) return false; \
const told = JSON.parse(s.dataset.mf); return told.has_turn && !told.is_speaking }"
COUNT_TURNS = """() => {
  window.mfTurns = 0;
  let before = false;
  new MutationObserver(() => {
    const found = document.querySelector('#mf-status [data-mf]');
    const now = Boolean(found) && JSON.parse(found.dataset.mf).is_speaking;
    if (now && !before) window.mfTurns += 1;
    before = now;
  }).observe(document, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-mf']});
}"""
"""Answers may have come before anybody looks."""


class CompareScreen:
    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url, self.turns = page, url.rstrip("/"), 0
        page.add_init_script(f"({COUNT_TURNS})()")

    def open(self, path: str = "/") -> CompareScreen:
        self.page.goto(self.url + path)
        expect(self.status).to_contain_text("models answer", timeout=SLOW_MS)
        return self

    # what is seen

    @property
    def status(self) -> Locator:
        return self.page.locator("#mf-status")

    @property
    def prompt(self) -> Locator:
        return self.page.locator("#mf-prompt textarea")

    @property
    def controls(self) -> dict[str, Any]:
        """What the page's script was told may be pressed."""
        told = self.page.locator("#mf-status [data-mf]").get_attribute("data-mf")
        return dict(json.loads(told or "{}"))

    def button(self, name: str) -> Locator:
        """By its element's id without the prefix."""
        return self.page.locator(f"button#mf-{name}, #mf-{name} button").first

    def chat(self, place: int) -> Locator:
        return self.page.locator(f"#mf-chat-{place}")

    def answer(self, place: int) -> Locator:
        """The last thing said in a panel."""
        return self.chat(place).locator(".message.bot, .bot.message").last

    def side(self, place: int) -> Locator:
        return self.page.locator(f"#mf-side-{place}")

    # what is done

    def ask(self, text: str) -> None:
        """Sent with Enter, and answered."""
        self.send(text)
        self.answered()

    def send(self, text: str) -> None:
        self.prompt.fill(text)
        self.prompt.press("Enter")
        self.speaking()

    def send_refused(self, text: str, why: str) -> None:
        self.prompt.fill(text)
        self.prompt.press("Enter")
        expect(self.status).to_contain_text(why, timeout=SLOW_MS)
        expect(self.prompt).to_have_value(text)

    def speaking(self) -> None:
        """Until one more turn has begun."""
        self.page.wait_for_function("seen => window.mfTurns > seen", arg=self.turns, timeout=SLOW_MS, polling=50)
        self.turns += 1

    def answered(self) -> None:
        self.page.wait_for_function(ANSWERED, timeout=SLOW_MS, polling=50)

    def vote(self, choice: str) -> None:
        self.button(f"vote-{choice}").click()
        self.voted(choice)

    def voted(self, choice: str) -> None:
        expect(self.button(f"vote-{choice}")).to_have_attribute("aria-pressed", "true", timeout=SLOW_MS)

    def show_names(self) -> None:
        self.button("reveal").click()
        expect(self.status).to_contain_text(" was ", timeout=SLOW_MS)

    def open_part(self, title: str) -> None:
        """An accordion, by what its title begins with."""
        self.page.get_by_role("button", name=title).first.click()

    def open_tab(self, name: str) -> None:
        """Where there is no room for all, from the menu of the others."""
        tab = self.page.get_by_role("tab", name=name)
        if not tab.is_visible():
            self.page.locator(".overflow-menu > button").click()
            tab = self.page.locator(".overflow-dropdown button", has_text=name)
        tab.click()

    def compare(self, *names: str) -> None:
        """Chooses who meets, by their names."""
        if not self.button("choose").is_visible():
            self.open_part("Settings")
        self.button("choose").click()
        for place, name in enumerate(names):
            self.choose(f"side-choice-{place}", name)
        self.button("apply").click()
        expect(self.page.locator("#mf-side-choice-0")).to_be_hidden(timeout=SLOW_MS)

    def choose(self, dropdown: str, name: str) -> None:
        field = self.page.locator(f"#mf-{dropdown} input")
        field.click()
        self.page.get_by_role("option", name=name, exact=True).locator("visible=true").last.click()
        expect(field).to_have_value(name)

    def download(self, press: str) -> Path:
        with self.page.expect_download(timeout=SLOW_MS) as found:
            self.button(press).click()
        return Path(found.value.path())

    def is_wider_than_the_window(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"))
