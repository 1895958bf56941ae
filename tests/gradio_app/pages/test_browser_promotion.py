"""Promote and roll back by a person: logged in with the right to, on the real command, with the real gate."""

import shutil

import mlflow
import pytest
from compare_screen import SLOW_MS
from described_versions import register_described
from mlflow import MlflowClient
from playground_stand import playground_command
from playwright.sync_api import expect

from mlflow_finetune_plugin.credentials.users import add_user
from mlflow_finetune_plugin.promotion.moves.audit import history

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def url(tmp_path_factory, empty_store, endpoint):
    folder = tmp_path_factory.mktemp("promotion")
    shutil.copy(empty_store, folder / "mlflow.db")
    uri, before = f"sqlite:///{folder / 'mlflow.db'}", mlflow.get_tracking_uri()
    users = folder / "users.yaml"
    add_user(users, "alice", "correct horse", may_promote=True)
    add_user(users, "bob", "battery staple")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        for right in (100, 160):
            register_described(MlflowClient(uri), "bot", right)
        try:
            with playground_command(
                folder, uri, "--endpoint", endpoint, "--model", "bot", "--auth-file", str(users)
            ) as found:
                yield found
        finally:
            mlflow.set_tracking_uri(before)


@pytest.fixture
def runs_tab(browser, url):
    """Logs somebody in and opens the tab."""
    contexts = []

    def open_tab(name, password):
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.goto(url)
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        page.get_by_role("tab", name="Runs").click(timeout=SLOW_MS)
        expect(page.locator("[data-version]").first).to_be_visible(timeout=SLOW_MS)
        return page

    yield open_tab
    for context in contexts:
        context.close()


def test_a_person_promotes_twice_and_rolls_back(runs_tab):
    client = MlflowClient()

    def champion():
        number = client.get_registered_model("bot").aliases.get("champion")
        return None if number is None else str(number)

    page = runs_tab("alice", "correct horse")
    promote, yes = (
        page.get_by_role("button", name="Promote this version"),
        page.get_by_role("button", name="Yes, let the gate"),
    )
    for number in ("1", "2"):
        page.locator(f'[data-version="{number}"]').first.click()
        expect(page.get_by_label(f"Version {number}", exact=True).first).to_be_visible(timeout=SLOW_MS)
        promote.click()
        expect(page.get_by_text(f"The gate judges version {number} against")).to_be_visible(timeout=SLOW_MS)
        assert champion() == (None if number == "1" else "1"), "only after the confirmation"
        yes.click()
        expect(page.get_by_text("Promoted.").first).to_be_visible(timeout=180_000)
        assert champion() == number
    page.get_by_role("button", name="Roll back").first.click()
    page.get_by_label("Reason (recorded)").fill("too curt")
    page.get_by_role("button", name="Yes, roll back").click()
    expect(page.get_by_text("bot: champion 2 -> 1")).to_be_visible(timeout=60_000)
    assert champion() == "1"
    last = next(move for move in history(client, "bot") if move.kind == "rollback")
    assert last.reason == "too curt"
    assert "alice" in last.who


def test_a_version_picked_while_the_list_is_read_stays_picked(runs_tab):
    page = runs_tab("bob", "battery staple")
    pick = page.locator('[data-version="1"]').first
    for _ in range(5):
        page.locator('[data-version="2"]').first.click()
        expect(page.get_by_label("Version 2", exact=True).first).to_be_visible(timeout=SLOW_MS)
        page.get_by_role("button", name="Refresh").click()
        pick.click()
        expect(page.get_by_label("Version 1", exact=True).first).to_be_visible(timeout=SLOW_MS)
        page.wait_for_timeout(1000)
        expect(page.get_by_label("Version 1", exact=True).first).to_be_visible(timeout=SLOW_MS)


def test_who_has_no_right_sees_why_and_cannot_press(runs_tab):
    page = runs_tab("bob", "battery staple")
    expect(page.get_by_text("You cannot promote or roll back")).to_be_visible(timeout=SLOW_MS)
    expect(page.get_by_role("button", name="Promote this version")).to_be_disabled()
    expect(page.get_by_role("button", name="Roll back").first).to_be_disabled()
