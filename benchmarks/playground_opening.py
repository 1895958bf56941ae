"""How long a page takes from being opened until somebody can type into it, in Chromium."""

from __future__ import annotations

import statistics
import time
from typing import Any

from chromium import chromium
from playground_page import Measured

GOAL_S = 2.0
BROWSERS = 3
USABLE = """() => {
  const prompt = document.querySelector('#mf-prompt textarea');
  return prompt !== null && !prompt.disabled && document.querySelector('#mf-status [data-mf]') !== null;
}"""


def measure(url: str, openings: int) -> list[Measured]:
    """Cold: a browser profile that has never seen the page; warm: the same one again. Nothing else is asked of the app.

    The first page that a browser shows after its start waits for the browser, too, so it is told apart.
    """
    first, cold, warm = [], [], []
    for _ in range(BROWSERS):
        with chromium() as browser:
            for number in range(1 + -(-openings // BROWSERS)):
                context = browser.new_context(viewport={"width": 1280, "height": 900})
                (first if number == 0 else cold).append(opened_s(context, url))
                warm.append(opened_s(context, url))
                context.close()
    return [result_of("cold, in a browser just started", first), result_of("cold", cold), result_of("warm", warm)]


def opened_s(context: Any, url: str) -> float:
    """Seconds until the prompt box takes words and the status says what may be done."""
    page = context.new_page()
    start = time.monotonic()
    page.goto(url, wait_until="commit")
    page.wait_for_function(USABLE, polling=20, timeout=30_000)
    took = time.monotonic() - start
    page.close()
    return took


def result_of(kind: str, seconds: list[float]) -> Measured:
    middle, longest = statistics.median(seconds), max(seconds)
    value = f"median {middle:.2f} s, max {longest:.2f} s of {len(seconds)}"
    return Measured(f"page usable after opening, {kind}", value, f"{GOAL_S:g} s", longest <= GOAL_S)
