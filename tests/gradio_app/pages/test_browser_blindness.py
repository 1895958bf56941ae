"""Ten turns with votes, and everything that reached the browser meanwhile: nowhere does it say who answers."""

import re

import pytest

pytestmark = pytest.mark.browser

CHOICES = ("left", "right", "tie", "both_bad")
STORED = """() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href,
  [...document.querySelectorAll('*')].map(one => [...one.attributes].map(a => a.value).join(' ')).join('\\n'),
  [...document.querySelectorAll('input, textarea')].map(one => one.value)])"""


def identities(stand) -> list[str]:
    """What would say who answers: names, versions and digests of receipts, where the answers come from."""
    ports = [str(stand.endpoint.port), str(stand.other.port)]
    names = ["bot@", "bot/1", "bot/2", "%40challenger", "boastful", "unwell", '"slow"', "far ["]
    return [*names, "a" * 12, "b" * 12, "x-finetune", "request_id", "first_token", "tokens_per_s", *ports]


class Recording:
    """Every address, header and body that a page gets."""

    def __init__(self, page) -> None:
        self._finished, self._failed = [], []
        page.on("requestfinished", self._note)
        page.on("websocket", lambda found: self._failed.append(found.url))

    def _note(self, request) -> None:  # Playwright takes no method of a list
        self._finished.append(request)

    def texts(self) -> list[tuple[str, str]]:
        assert self._failed == [], "a websocket is not recorded"
        found = []
        for request in self._finished:
            response = request.response()
            body = response.body().decode("utf-8", "replace")
            found += [(request.url, str(response.all_headers())), (request.url, body), (request.url, request.url)]
        return found


def test_nothing_that_reaches_the_browser_says_who_answers_before_the_names_are_asked_for(screen, stand):
    page = screen(is_open=False)
    recording = Recording(page.page)
    page.open()
    for number in range(10):
        page.ask(f"blind {number}")
        page.vote(CHOICES[number % 4])
        if number == 4:
            page.button("differ").click()
            page.page.locator("#mf-difference mark").first.wait_for()
            page.button("retry").click()
            page.speaking()
            page.answered()
            page.vote("left")
    config = page.page.evaluate("fetch('/config').then(found => found.text())")
    found = [
        *recording.texts(),
        ("stored", page.page.evaluate(STORED)),
        ("page", page.page.content()),
        ("config", config),
    ]
    answers = "".join(text for url, text in found if "queue/data" in url)
    assert answers.count("so says the first") >= 10, "the answers are in the recording"
    own = re.compile("^" + re.escape(page.url))
    told = [
        (identity, url, text[max(0, text.index(identity) - 80) : text.index(identity) + 80])
        for url, text in found
        for identity in identities(stand)
        if identity in (own.sub("", text) if text == url else text) and "/assets/" not in url and "/static/" not in url
    ]
    assert told == []
    page.show_names()
    assert "bot@champion" in page.page.content()
