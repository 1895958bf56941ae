"""The runs and data tabs as a browser and as gradio_client use them: a real server, a real store, the real gate."""

from __future__ import annotations

import os
import re
from contextlib import contextmanager

import gradio as gr
import mlflow
import pytest
from conftest import free_port
from described_versions import register_described
from gradio_client import Client
from mlflow import MlflowClient
from page_visits import Visitor

from gradio_app.pages.data import DataPage
from gradio_app.pages.runs import RunsPage
from gradio_app.pages.theme import script, style_sheet
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.store.names import INTENT_TAG
from mlflow_finetune_plugin.store.registered_model import read_model

pytestmark = pytest.mark.store

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


class Rights:
    """Who may is decided while the page stands, as an auth file that is changed does."""

    def __init__(self) -> None:
        self.may = True

    def __call__(self, request: gr.Request) -> bool:
        assert isinstance(request, gr.Request)
        return self.may


@pytest.fixture
def rights():
    return Rights()


@pytest.fixture
def address(registry, rights):
    with served(rights) as url:
        yield url


@contextmanager
def served(rights):
    with gr.Blocks() as page:
        with gr.Tab("Compare"):
            gr.Markdown("two sides")
        with gr.Tab("Runs") as runs:
            RunsPage("bot", rights).build(runs)
        with gr.Tab("Data") as data:
            DataPage("bot").build(data)
    page.queue().launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, css=style_sheet(), head=script())
    try:
        yield page.local_url
    finally:
        page.close()


def champion(registry):
    return read_model(registry, "bot")[0].get("champion")


def test_versions_are_read_when_the_tab_is_selected_and_picked_in_the_table(registry, address):
    first, second = register_described(registry, "bot", 100), register_described(registry, "bot", 160)
    visitor = Visitor(address)
    assert "exact_match" not in str(visitor.config)
    visitor.select_tab("Runs")
    page = visitor.page()
    assert re.findall(r'data-version="(\d+)"', page) == [second, first]
    assert f'aria-label="Version {second}"' in page, "the challenger"
    assert "No alias has been moved yet" in page
    visitor.choose("Version", first)
    assert f'aria-label="Version {first}"' in visitor.page()
    visitor.choose("Compare with", second)
    assert 'aria-label="Comparison"' in visitor.page()


@pytest.mark.process
def test_promote_asks_first_then_tells_the_verdict_and_rollback_the_same(registry, address):
    first, second = register_described(registry, "bot", 100), register_described(registry, "bot", 160)
    visitor = Visitor(address)
    visitor.select_tab("Runs")
    visitor.press("Yes, let the gate judge it")
    assert "was planned; fix:" in visitor.text()
    visitor.choose("Version", first)
    visitor.press("Promote this version")
    assert f"The gate judges version {first} against its base" in visitor.text()
    assert champion(registry) is None
    visitor.choose("Version", second)
    assert "The gate judges" not in visitor.text(), "another pick takes the question away"
    for number in (first, second):
        visitor.choose("Version", number)
        visitor.press("Promote this version")
        visitor.press("Yes, let the gate judge it")
        assert re.search(rf"Version {number}, [-0-9 :]+ UTC\. Promoted\. gain: exact_match over the", visitor.text())
        assert champion(registry) == number
    assert "mf-champion" in visitor.page(), "the table is read again"
    late = Visitor(address)
    late.select_tab("Runs")
    assert f"Version {second}, " in late.text(), "who comes later sees the verdict too"
    late.press("Roll back")
    assert f"champion goes from version {second} back to version {first}" in late.text()
    late.write("Reason", "rude <b>answers</b>")
    late.press("Yes, roll back")
    assert champion(registry) == first
    assert f"Done. bot: champion {second} -&gt; {first}" in late.page()
    assert "rude &lt;b&gt;answers&lt;/b&gt;" in late.page()
    assert history(registry, "bot")[0].reason == "rude <b>answers</b>"


def test_who_has_no_right_moves_nothing_whatever_is_sent(registry, address, rights):
    first = register_described(registry, "bot", 100)
    asked = Visitor(address)
    asked.select_tab("Runs")
    asked.press("Promote this version")
    rights.may = False
    asked.press("Yes, let the gate judge it")
    assert "You cannot promote or roll back" in asked.text()
    visitor = Visitor(address)
    visitor.select_tab("Runs")
    assert "You cannot promote or roll back" in visitor.text()
    for button in ("Promote this version", "Yes, let the gate judge it", "Roll back", "Yes, roll back"):
        visitor.press(button)
    assert champion(registry) is None
    assert history(registry, "bot") == []
    assert first in visitor.text()


@pytest.mark.process
def test_a_refusal_stays_to_be_read_when_there_was_a_verdict_before(registry, address, rights):
    first = register_described(registry, "bot", 100)
    visitor = Visitor(address)
    visitor.select_tab("Runs")
    visitor.press("Promote this version")
    visitor.press("Yes, let the gate judge it")
    assert champion(registry) == first
    rights.may = False
    visitor.press("Yes, let the gate judge it")
    assert "Promoted" not in visitor.text()
    assert "You cannot promote or roll back" in visitor.text()


def test_programs_read_versions_and_moves_and_cannot_move_anything(registry, address):
    number = register_described(registry, "bot", 100)
    registry.set_registered_model_alias("bot", "champion", number)
    client = Client(address, verbose=False)
    (version,) = client.predict(50, api_name="/versions")
    assert (version["number"], version["aliases"]) == (number, ["challenger", "champion"])
    assert version["gains"][0]["gain"]["value"] == 0.4
    (move,) = client.predict(api_name="/history")
    assert (move["kind"], move["to_version"]) == ("unexplained", number)
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/versions", "/history"}


def test_a_model_that_is_not_there_and_one_without_versions_say_what_to_do(registry, address):
    visitor = Visitor(address)
    visitor.select_tab("Runs")
    assert "The versions cannot be read now. no registered model" in visitor.text()
    visitor.select_tab("Data")
    assert "The data report cannot be read now. no registered model" in visitor.text()
    registry.create_registered_model("bot")
    for tab in ("Runs", "Data"):
        visitor.select_tab(tab)
        assert "bot has no versions yet. Train one: mlflow-finetune run PROJECT" in visitor.text()


def test_a_version_without_a_data_report_says_so(registry, address):
    register_described(registry, "bot", 100)
    visitor = Visitor(address)
    visitor.select_tab("Data")
    assert "holds no finetune/data_report.json" in visitor.text()


def test_a_tracking_server_that_goes_is_told_and_what_was_shown_stays(server, rights, monkeypatch):
    for name, value in (("MLFLOW_TRACKING_URI", server.uri), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")):
        monkeypatch.setenv(name, value)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.uri)
    try:
        number = register_described(MlflowClient(server.uri), "bot", 100)
        with served(rights) as url:
            visitor = Visitor(url)
            visitor.select_tab("Runs")
            assert f'aria-label="Version {number}"' in visitor.page()
            assert "<polyline" in visitor.page()
            server.stop()
            visitor.press("Refresh")
            assert "The versions cannot be read now. bot: the registry failed: " in visitor.text()
            assert f'aria-label="Version {number}"' in visitor.page(), "the card stays"
            visitor.press("Promote this version")
            assert "the registry failed" in visitor.text()
            server.start()
            visitor.press("Refresh")
            assert f'data-version="{number}"' in visitor.page()
    finally:
        mlflow.set_tracking_uri(before)


def test_a_move_that_was_cut_off_is_said(registry, address):
    register_described(registry, "bot", 100)
    registry.set_registered_model_tag("bot", INTENT_TAG, "{}")
    visitor = Visitor(address)
    visitor.select_tab("Runs")
    assert "A move is running, or was interrupted." in visitor.text()
