"""Votes cast through the page, a training on them that the page starts, and its version as a side."""

import pytest
from compare_screen import SLOW_MS, CompareScreen
from playground_stand import playground_command
from playwright.sync_api import expect
from served_models import QUESTIONS, registry_of_bot

from mlflow_finetune_plugin.store.names import START_FROM_TAG

pytestmark = [pytest.mark.browser, pytest.mark.train]

RECIPE = """\
base_model: embedded
training: {max_steps: 4, max_length: 256}
eval: {max_new_tokens: 4, forgetting: false}
"""
TRAINED_MS = 400_000


@pytest.mark.timeout(1200)
def test_votes_of_the_page_become_a_version_that_the_page_compares(browser, tmp_path_factory, empty_store, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    (project / "finetune.yaml").write_text(RECIPE)
    with registry_of_bot(tmp_path_factory.mktemp("registry"), empty_store) as registry:
        options = ("--model", "bot", "--engine", "transformers", "--store", str(tmp_path / "store"))
        with playground_command(tmp_path, registry.uri, *options, "--project", str(project), listens_in_s=600) as url:
            screen = CompareScreen(browser.new_page(), url).open()
            for question, choice in zip(QUESTIONS, ("left", "right", "left", "both_bad"), strict=True):
                screen.ask(question)
                screen.vote(choice)
                screen.show_names()
                screen.button("new").click()  # turns of one conversation are never on both sides of a split
                expect(screen.answer(0)).to_have_count(0, timeout=SLOW_MS)
            page = screen.page
            screen.open_tab("Standings")
            page.locator("#votes-train").click(timeout=60_000)
            expect(page.locator("#votes-question")).to_contain_text("It starts from version 1", timeout=60_000)
            expect(page.locator("#votes-question")).to_contain_text("the recipe of project")
            page.locator("#votes-yes").click()
            training = page.locator("#votes-training")
            expect(training).to_contain_text("run ", timeout=120_000)
            expect(page.locator("#votes-train")).to_be_disabled()
            screen.open()
            screen.open_tab("Standings")
            expect(training).to_contain_text("run ", timeout=60_000)
            expect(training).to_contain_text("The training has finished.", timeout=TRAINED_MS)
            expect(training).to_contain_text("bot/3")
            expect(page.locator("#votes-train")).to_be_enabled()
            tags = registry.client.get_run(registry.client.get_model_version("bot", "3").run_id).data.tags
            assert tags[START_FROM_TAG] == "models:/bot/1"
            screen.open_tab("Compare")
            screen.turns = 0
            screen.compare("bot/3", "bot@champion")
            screen.ask("Which side is new?")
            page.close()
