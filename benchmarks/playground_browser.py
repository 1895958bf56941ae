"""A person at the playground in Chromium: logs in, asks, reads, votes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from playground_opening import USABLE

WAIT_MS = 20_000
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowUp", "both_bad": "ArrowDown"}


class Person:
    """A page of its own."""

    def __init__(self, chromium: Any, url: str, *, width: int = 1280, height: int = 900, query: str = "") -> None:
        self._context = chromium.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce")
        self.page = self._context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self._url = url
        self.page.goto(url + query)

    def log_in(self, name: str, password: str) -> None:
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Log in").click()

    def wait_until_usable(self) -> None:
        self.page.wait_for_function(USABLE)

    def limit_tokens(self, count: int) -> None:
        self.unfold("Settings")
        box = self.page.locator("#mf-max-tokens").locator("input, textarea").first
        box.fill(str(count))
        box.press("Tab")

    def unfold(self, part: str) -> None:
        self.page.locator("button.label-wrap", has_text=part).first.click()

    def ask(self, prompt: str) -> None:
        self.page.fill("#mf-prompt textarea", prompt)
        self.page.keyboard.press("Enter")
        self.tells("Which answer is better? Keys")

    def ask_next(self) -> None:
        """Of the prompt set, whose part has been unfolded."""
        self.page.click("#mf-next")
        self.tells("Which answer is better? Keys")

    def tells(self, text: str) -> None:
        """Waits until the status says so."""
        try:
            self.page.locator("#mf-status", has_text=text).wait_for()
        except Exception as error:
            texts = [self.page.locator(f"#mf-{part}").inner_text() for part in ("status", "chat-0", "chat-1")]
            raise AssertionError(f"it does not say {text!r}, but: {' / '.join(texts)}") from error

    @property
    def prompt(self) -> str:
        return str(self.page.locator('#mf-chat-0 [data-testid="user"]').last.inner_text()).strip()

    @property
    def answers(self) -> list[str]:
        chats = [self.page.locator(f'#mf-chat-{side} [data-testid="bot"]').last for side in range(2)]
        return [str(chat.inner_text()).strip() for chat in chats]

    def vote(self, choice: str, *, by_key: bool) -> None:
        if by_key:
            self.page.evaluate("document.activeElement.blur()")
            self.page.keyboard.press(KEYS[choice])
        else:
            self.page.click(f"#mf-vote-{choice}")
        self.tells("Your vote")

    def show_names(self) -> str:
        """What the status says then."""
        self.page.click("#mf-reveal")
        self.tells("The vote is final")
        return str(self.page.locator("#mf-status").inner_text())

    def open_tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def picture(self, path: Path, *, full_page: bool = False) -> None:
        self.page.screenshot(path=str(path), full_page=full_page)

    def leave(self) -> None:
        self._context.close()
