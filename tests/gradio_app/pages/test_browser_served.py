"""A blind conversation with models that are really served by the command itself, and a vote that counts in MLflow."""

import importlib.util
import re
import shutil

import mlflow
import pytest
from compare_screen import CompareScreen
from conftest import wait_for
from playground_stand import playground_command
from playwright.sync_api import expect
from served_models import QUESTIONS, VersionMaker, registry_of_bot
from shown_pictures import BLUE, LANGUAGE_LAYERS, RED, VISION, picture

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


@pytest.fixture
def registry_that_sees(tmp_path, empty_store):
    """``shapes``: both versions read pictures; version 1 is champion, version 2 challenger."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        maker = VersionMaker(f"sqlite:///{tmp_path}/mlflow.db", VISION, "embedded-vision")
        for number, alias in ((1, "champion"), (2, "challenger")):
            maker.make("shapes", seed=number, target_modules=LANGUAGE_LAYERS)
            maker.client.set_registered_model_alias("shapes", alias, str(number))
        yield maker
    mlflow.set_tracking_uri(before)


@pytest.mark.timeout(900)
def test_a_person_shows_pictures_to_two_served_versions_and_votes(browser, registry_that_sees, tmp_path):
    arguments = ("--model", "shapes", "--engine", "transformers", "--store", str(tmp_path / "store"))
    uri = registry_that_sees.uri
    with playground_command(tmp_path, uri, *arguments, listens_in_s=600) as url:
        page = CompareScreen(browser.new_page(), url).open()
        answers = []
        for shown in (picture(RED), picture(BLUE, round_shape=True)):
            if answers:
                page.button("new").click()
                expect(page.page.locator(".mf-pictures img")).to_have_count(0)
            expect(page.page.locator("#mf-picker")).to_be_visible()
            buffer = {"name": "shape.png", "mimeType": "image/png", "buffer": shown.content}
            page.page.set_input_files(".mf-picker input", buffer)
            page.ask("What shape is it?")
            expect(page.page.locator(".mf-pictures img")).to_have_count(1)
            answers.append({page.answer(position).inner_text() for position in (0, 1)})
            page.vote("left")
        assert answers[0] != answers[1]  # to the same words
        page.show_names()
        wait_for(lambda: len(read_votes("shapes", uri).votes) == 2, 60, "votes in MLflow")
        page.page.close()
    assert {vote.vote.left.receipt.version for vote in read_votes("shapes", uri).votes} <= {"1", "2"}
    assert not [vote.fault for vote in read_votes("shapes", uri).votes if vote.fault]
