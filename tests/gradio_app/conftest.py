"""Endpoints whose models are told what to say, and a store of its own for each test that reads or moves what is registered."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, chromium
from compare_screen import CompareScreen
from conftest import Workplace
from mlflow import MlflowClient
from playground_stand import Stand, playground_stand
from playwright.sync_api import Error
from streaming_endpoint import router_headers, streaming_endpoint
from votes_cast import register_versions

SCREENSHOTS = Path(os.environ.get("SCREENSHOTS") or Path(tempfile.gettempdir()) / "mlflow-finetune-screenshots")
LONG = "one two three four five six seven eight nine ten " * 4
SCRIPTS = {
    "bot@champion": {"text": LONG + "so says the first", "headers": router_headers("1")},
    "bot@challenger": {"text": LONG + "so says the second", "headers": router_headers("2")},
    "bot/1": {"text": "one", "headers": router_headers("1")},
    "base": {"text": "the base says little", "headers": router_headers("base")},
    "slow": {"text": LONG, "tokens": 30, "rate": 20, "headers": router_headers("3")},
    "fast": {"text": LONG, "tokens": 60, "rate": 400, "headers": router_headers("4")},
    "steady": {"text": LONG, "tokens": 120, "rate": 30, "headers": router_headers("4")},
    "even": {"text": LONG, "tokens": 120, "rate": 30, "headers": router_headers("3")},
    "endless": {"text": LONG, "tokens": 100_000, "rate": 40},
    "endless and slow": {"text": LONG, "tokens": 100_000, "rate": 20},
    "late": {"text": "here", "delay": 0.6},
    "boastful": {"text": "I am bot@challenger and nobody else", "rate": 30, "headers": router_headers("2")},
    "painter one": {"text": "a red square", "headers": router_headers("1"), "sees": True},
    "painter two": {"text": "a blue circle", "headers": router_headers("2"), "sees": True},
    "unwell": {"text": "-", "fault": "http500"},
    "cut": {"text": "this will not end well at all, they said", "fault": "cut"},
    "garbage": {"text": "this will not end well at all, they said", "fault": "garbage"},
    "broken": {"text": "this will not end well at all, they said", "fault": "error_event"},
    "mute": {"text": "-", "fault": "silent"},
    "empty": {"text": ""},
    "hostile": {
        "text": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> [a](javascript:alert(1))"
    },
}
HOSTILE = {
    "attack": "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'><svg onload='window.hacked = 3'>"
    "<a href='javascript:window.hacked = 4'>link</a> [link](javascript:window.hacked=5) "
    "![picture](http://127.0.0.1:9/spy.png) <iframe srcdoc='<script>parent.hacked = 6</script>'></iframe>\n\n"
    "| a | b |\n|---|---|\n| <b onclick='window.hacked = 7'>c</b> | d |\n\n```html\n</code></pre><script>window.hacked = 10"
    "</script>\n```\n\n$$\\href{javascript:window.hacked=11}{x}$$ <style>body { display: none }</style> THE END",
    "breakout": "</div></div></span></p></main></body> <table><tr><td style='position:fixed;inset:0'>cover</td></tr></table>"
    "<form action='http://127.0.0.1:9/'><input name=p><button>ok</button></form> \x1b[31mred\x1b[0m \u202eright to left"
    "\u202c שלום عربي \x07\x08 <meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'> "
    "<details open ontoggle='window.hacked = 12'>d</details><base href='http://127.0.0.1:9/'> THE END",
    "huge": "x" * 60_000 + " " + "word " * 20_000 + "\n" * 500 + "THE END",
}
HOSTILE_SCRIPTS = {name: {"text": text, "headers": router_headers("1")} for name, text in HOSTILE.items()}
FAR = {"far": {"text": LONG, "tokens": 400, "rate": 100, "headers": router_headers("3")}}
"""Of the second endpoint, which tests kill."""


@pytest.fixture
def store(desk, monkeypatch):
    """Where MLflow tracks, with two registered versions of bot."""
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", desk.tracking_uri)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(desk.tracking_uri)
    register_versions(desk.tracking_uri)
    yield desk.tracking_uri
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory):
    """Base URL of a real endpoint whose models are told what to say."""
    with streaming_endpoint(SCRIPTS, tmp_path_factory.mktemp("endpoint")) as url:
        yield url


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_FINETUNE_HOME", str(tmp_path / "home"))


@pytest.fixture
def registry(desk: Workplace) -> Iterator[MlflowClient]:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(desk.tracking_uri)
    yield MlflowClient(desk.tracking_uri)
    mlflow.set_tracking_uri(before)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for a module, not for all: while it is open Playwright keeps an event loop that ``asyncio.run`` of others refuses."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with chromium() as found:
        yield found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What every open page looks like at the end of its test, for people to look at, outside the repository."""
    report = yield
    opened = getattr(item, "funcargs", {}).get("browser")
    if call.when == "call" and opened is not None:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        pages = [page for context in opened.contexts for page in context.pages if not page.is_closed()]
        for number, page in enumerate(pages):
            name = re.sub(r"[^\w-]+", "-", item.name)[:100]
            try:
                page.screenshot(
                    path=SCREENSHOTS / f"{item.path.stem}-{name}-{number}.png", full_page=True, timeout=5_000
                )
            except Error as error:
                report.sections.append(("screenshot", str(error)))
    return report


@pytest.fixture(scope="session")
def stand(tmp_path_factory, empty_store) -> Iterator[Stand]:
    """The real command over every script; champion meets challenger until a test chooses otherwise."""
    with playground_stand(tmp_path_factory.mktemp("stand"), empty_store, SCRIPTS | HOSTILE_SCRIPTS, FAR) as found:
        yield found


@pytest.fixture
def screen(browser, stand) -> Iterator[Callable[..., CompareScreen]]:
    """Opens the page as a new person does, in a browser profile of its own."""
    contexts, said = [], []

    def open_page(
        path: str = "/", *, held_off: str | None = None, is_open: bool = True, **profile: Any
    ) -> CompareScreen:
        """``held_off``: words of errors that are expected; ``is_open`` false: the page is left for ``open``."""
        contexts.append(browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **profile}))
        page = contexts[-1].new_page()

        def tell(message: Any) -> None:
            if held_off is None or held_off not in message.text:
                said.append(message.text)

        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: tell(message) if message.type == "error" else None)
        made = CompareScreen(page, stand.url)
        return made.open(path) if is_open else made

    yield open_page
    for context in contexts:
        context.close()
    assert said == [], "errors in the page"
