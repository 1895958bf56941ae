"""A blind conversation with models that are really served by the command itself, and a vote that counts in MLflow."""

import importlib.util
import re

import pytest
from compare_screen import CompareScreen
from conftest import wait_for
from playground_stand import playground_command
from playwright.sync_api import expect
from served_models import QUESTIONS, registry_of_bot

from mlflow_finetune_plugin.votes import read_votes

VLLM = pytest.param(
    "vllm",
    marks=[
        pytest.mark.vllm,
        pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    ],
)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def registry(tmp_path_factory, empty_store):
    """``bot``: version 1 is champion, version 2 challenger."""
    with registry_of_bot(tmp_path_factory.mktemp("registry"), empty_store) as made:
        yield made


@pytest.mark.timeout(900)
@pytest.mark.parametrize("engine", ["transformers", VLLM])
def test_a_person_talks_to_two_served_versions_blind_and_votes(browser, registry, tmp_path, engine):
    before = len(read_votes("bot", registry.uri).votes)
    with playground_command(
        tmp_path,
        registry.uri,
        "--model",
        "bot",
        "--engine",
        engine,
        "--store",
        str(tmp_path / "store"),
        listens_in_s=600,
    ) as url:
        page = CompareScreen(browser.new_page(), url).open()
        counts = "Your first 5 votes on this pair count when the version that challenges the champion is judged"
        expect(page.page.locator(".mf-notice").first).to_contain_text(counts)
        cast = []
        for question, choice in zip(QUESTIONS, ("left", "both_bad", "right", "tie"), strict=True):
            page.ask(question)
            assert "bot@" not in page.page.content()
            page.vote(choice)
            cast.append(choice)
        page.show_names()
        names = {page.side(place).locator("strong").inner_text() for place in (0, 1)}
        assert names == {"bot@champion", "bot@challenger"}
        for place in (0, 1):
            expect(page.side(place)).to_contain_text(re.compile(r"speed[\d.,]+ tokens/s|time[\d.,]+ m?s"))
        found = wait_for(
            lambda: (votes := read_votes("bot", registry.uri).votes[before:]) and len(votes) == len(cast) and votes,
            60,
            "votes",
        )
        assert [vote.vote.choice for vote in found] == cast
        assert all(vote.fault is None for vote in found)
        page.page.close()
