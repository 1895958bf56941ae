"""The tab in a real server: what programs are told, and what a person sees in a browser while votes come in."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager

import gradio as gr
import pytest
from conftest import free_port, wait_for
from gradio_client import Client
from votes_cast import Ledger, ledger_in, register_versions, vote

from gradio_app.pages.standings import StandingsPage
from gradio_app.pages.theme import script, style_sheet
from mlflow_finetune_plugin.votes import Journal


class Playground:
    """Two tabs on loopback, the second one Standings, over a ledger of three versions."""

    def __init__(self, ledger: Ledger, interval_s: float = 0.3, *, live: bool = True) -> None:
        self.ledger = ledger
        self.voted_pair: tuple[str, str] | None = None
        self.page = StandingsPage(
            "bot", ledger.uri, interval_s=interval_s, voted_pair=lambda request: self.voted_pair, live=live
        )
        with gr.Blocks() as self.app, gr.Tabs():
            with gr.Tab("Compare"):
                gr.Markdown("chat")
            with gr.Tab("Standings") as tab:
                self.page.build(tab)
        self.url = f"http://127.0.0.1:{free_port()}/"

    def start(self) -> None:
        port = int(self.url.rstrip("/").rpartition(":")[2])
        self.app.launch(
            server_name="127.0.0.1",
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            css=style_sheet(),
            head=script(),
        )


@pytest.fixture
def playground(tmp_path, empty_store, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    found = Playground(ledger_in(tmp_path, empty_store, versions=3))
    found.start()
    yield found
    found.app.close()


def test_a_program_is_told_the_standings(playground):
    playground.ledger.cast(vote(1, left="2", right="1", reasons=("correct",), prompt_set="greetings"))
    client = Client(playground.url, verbose=False)
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/standings"]
    told = client.predict(api_name="/standings")
    assert (told["model"], told["votes"], told["fault"]) == ("bot", 1, None)
    (pair,) = told["pairs"]
    assert (pair["candidate"], pair["champion"], pair["people"]["candidate_wins"]) == ("2", "1", 1)
    assert [group["name"] for group in pair["tags"] + pair["prompt_sets"]] == ["correct", "greetings"]


HIDDEN = {"candidate": "2", "champion": "1", "is_hidden": True, "people": {"votes": 9, "voters": 9}}


@pytest.mark.browser
def test_a_result_is_hidden_until_it_is_decided(browser, tmp_path, empty_store, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    ledger = ledger_in(tmp_path, empty_store, versions=3)
    playground = Playground(ledger, live=False)
    playground.start()
    ledger.cast(*[vote(n, "left", voter=f"v-{n}", left="2", right="1") for n in range(9)])
    ledger.cast(vote(90, "left", voter="v-90", left="3", right="1"))
    with open_page(browser, playground.url) as page:
        page.get_by_role("tab", name="Standings").click()
        shows(page, ".mf-sentence", "Undecided: 9 votes of 9 people so far.")
        shows(page, "#standings-overview", "Undecided: 1 vote of 1 person so far.")
        client = Client(playground.url, verbose=False)
        standings = client.predict(api_name="/standings")
        assert standings["pairs"][0] == HIDDEN
        assert standings["ranking"] is None
        shown = page.locator("#standings-of-pair").inner_text() + page.locator("#standings-overview").inner_text()
        assert not re.search(r"prefers? version|\d of \d|Ranking", shown)
        ledger.cast(*[vote(n, "left", voter=f"v-{n}", left="2", right="1") for n in range(9, 30)])
        shows(page, ".mf-sentence", "Decided: version 2 is preferred to version 1")
        first, other = client.predict(api_name="/standings")["pairs"]
        assert (first["is_hidden"], other["is_hidden"]) == (False, True)
        assert first["people"]["candidate_wins"] > 9
        assert page.locator("#standings-overview").get_by_text("Ranking").count() == 0
    playground.app.close()


@contextmanager
def open_page(browser, url):
    """At phone width."""
    context = browser.new_context(viewport={"width": 375, "height": 800})
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


@pytest.fixture
def browser_page(browser, playground):
    with open_page(browser, playground.url) as page:
        yield page


def shows(page, selector, text):
    page.locator(selector, has_text=text).wait_for(timeout=20_000)


@pytest.mark.browser
def test_a_person_sees_votes_come_in_and_picks_a_pair(playground, browser_page):
    page, ledger = browser_page, playground.ledger
    time.sleep(1)
    assert playground.page.feed.readings == 0  # nobody has the tab open
    page.get_by_role("tab", name="Standings").click()
    shows(page, "#standings-of-pair", "No votes yet")
    ledger.cast(*[vote(n, "left", voter=f"v-{n}", left="2", right="1") for n in range(30)])
    shows(
        page, ".mf-sentence", "Decided: version 2 is preferred to version 1, shown after 10 voters, at a planned look."
    )
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    ledger.cast(*[vote(n, "left", voter=f"v-{n}", left="3", right="2") for n in (40, 41)])
    shows(page, "#standings-overview", "Ranking")
    page.get_by_label("Versions compared").click()
    page.get_by_role("option", name="version 3 against version 2 (challenger)").click()
    shows(page, ".mf-sentence", "2 of 2 votes prefer version 3; about 8 more voters will decide")
    time.sleep(1)
    shows(page, ".mf-sentence", "2 of 2 votes prefer version 3")  # the next ticks keep the pair that was picked


@pytest.mark.browser
def test_the_tab_opens_on_the_pair_of_the_sessions_last_vote(playground, browser_page):
    page, ledger = browser_page, playground.ledger
    ledger.cast(*[vote(n, "left", voter=f"v-{n}", left="2", right="1") for n in range(8)])
    playground.voted_pair = ("1", "3")
    page.get_by_role("tab", name="Standings").click()
    shows(page, ".mf-sentence", "prefer version 2")  # the session's vote is not in MLflow yet
    ledger.cast(vote(50, "left", voter="v-50", left="3", right="1"))
    shows(page, ".mf-sentence", "1 of 1 vote prefers version 3")
    page.get_by_label("Versions compared").click()
    page.get_by_role("option", name="version 2 (challenger) against version 1 (champion)").click()
    shows(page, ".mf-sentence", "8 of 8 votes prefer version 2")
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("tab", name="Standings").click()
    time.sleep(1)
    shows(page, ".mf-sentence", "8 of 8 votes prefer version 2")  # picked after the last vote
    page.get_by_text("The numbers: intervals").click()
    shows(page, "#standings-numbers .mf-forest", "8")
    ledger.cast(vote(60, "left", voter="v-60", left="2", right="1"))
    shows(page, ".mf-sentence", "9 of 9 votes")
    page.locator("#standings-numbers .mf-forest").wait_for(timeout=20_000)  # what was opened stays open


@pytest.mark.browser
def test_a_closed_tab_asks_for_nothing(playground, browser_page):
    page = browser_page
    page.get_by_role("tab", name="Standings").click()
    shows(page, "#standings-of-pair", "No votes yet")
    wait_for(lambda: playground.page.feed.readings >= 2, 20, "second reading")
    page.get_by_role("tab", name="Compare").click()
    time.sleep(1)
    asked, requests = playground.page.feed.readings, []
    page.on("request", lambda request: requests.append(request.url))
    time.sleep(1.5)
    assert playground.page.feed.readings == asked
    assert requests == []


@pytest.mark.browser
def test_mlflow_away_leaves_the_last_picture_with_its_time(browser, server, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    register_versions(server.uri)
    ledger = Ledger(Journal("bot", tmp_path / "votes"), server.uri)
    ledger.cast(vote(1, left="2", right="1"))
    playground = Playground(ledger)
    playground.start()
    with open_page(browser, playground.url) as page:
        page.get_by_role("tab", name="Standings").click()
        shows(page, ".mf-sentence", "1 of 1 vote prefers version 2")
        server.stop()
        shows(page, "#standings-state", "The votes cannot be read right now.")
        shows(page, "#standings-state", "the standings below are of")
        shows(page, ".mf-sentence", "1 of 1 vote prefers version 2")
        server.start()
        shows(page, "#standings-state", "as of")
    playground.app.close()


@pytest.mark.browser
def test_a_hostile_tag_is_shown_as_text(playground, browser_page):
    page = browser_page
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    playground.ledger.cast(vote(1, left="2", right="1", reasons=(hostile,), prompt_set=hostile))
    page.get_by_role("tab", name="Standings").click()
    page.get_by_text("The numbers: intervals").click()
    shows(page, ".mf-forest", hostile)
    assert page.title() != "owned"
    assert page.locator("#standings-of-pair img").count() == 0
