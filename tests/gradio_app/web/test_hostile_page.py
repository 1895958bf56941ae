"""What the guard's policy holds off, and what it lets work, in a real browser."""

import re

import pytest
from playground_process import playground
from playwright.sync_api import expect

from mlflow_finetune_plugin.credentials.users import add_user

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=\"window.hacked='answer'\"><script>window.hacked='script'</script> `code`"
INJECT = """() => {
  const box = document.createElement('div');
  box.innerHTML = '<img src="x" onerror="window.hacked = 1"><iframe srcdoc="<script>parent.hacked = 2</script>"></iframe>';
  const script = document.createElement('script');
  script.textContent = 'window.hacked = 3';
  const link = document.createElement('a');
  link.href = 'javascript:window.hacked = 4';
  document.body.append(box, script, link);
  link.click();
}"""


def test_the_page_works_and_only_its_own_scripts_run(browser, tmp_path):
    with playground(tmp_path) as place:
        page = browser.new_page()
        asked, said = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(place.url)
        name = page.locator("#name textarea, #name input")
        expect(name).to_have_value("None promotes", timeout=20_000)
        assert page.evaluate("[window.mfLoaded, window.mfHead]") == [True, "é"]
        page.click("#js")
        expect(name).to_have_value("from js")
        page.fill("#text textarea, #text input", "4")
        page.click("#count")
        expect(name).to_have_value("3")
        assert said == []
        page.fill("#text textarea, #text input", HOSTILE)
        page.click("#say")
        expect(page.locator("#chat code")).to_have_count(2)
        page.evaluate(INJECT)
        page.wait_for_timeout(500)
        assert page.evaluate("window.hacked") is None
        assert any("Content Security Policy" in text for text in said)
        foreign = [url for url in asked if not url.startswith((place.url, "data:", "blob:", "about:"))]
        assert foreign == []


def test_a_person_logs_in_and_out(browser, tmp_path):
    file = tmp_path / "users.yaml"
    add_user(file, "alice", "correct horse", may_promote=True)
    with playground(tmp_path, "--auth-file", str(file)) as place:
        page = browser.new_page(viewport={"width": 375, "height": 700})
        page.goto(place.url)
        expect(page).to_have_url(re.compile("/login$"))
        page.get_by_label("Name").fill("alice")
        page.get_by_label("Password").fill("wrong horse")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
        page.get_by_label("Name").fill("alice")
        page.get_by_label("Password").fill("correct horse")
        page.keyboard.press("Enter")
        expect(page.locator("#name textarea, #name input")).to_have_value("alice promotes", timeout=20_000)
        assert page.evaluate("document.cookie") == ""
        page.goto(place.url + "/logout")
        page.get_by_role("button", name="Log out").click()
        expect(page).to_have_url(re.compile("/login$"))
        page.goto(place.url)
        expect(page).to_have_url(re.compile("/login$"))


def test_another_site_s_page_reads_and_changes_nothing(browser, tmp_path):
    """Both sites are on this machine, whose ports browsers call the same site: the origin is what differs."""
    with playground(tmp_path) as victim, playground(tmp_path) as attacker:
        page = browser.new_page()
        page.goto(attacker.url + "/robots.txt")
        for request in (
            "fetch(URL + '/config').then(r => r.text())",
            "fetch(URL + '/gradio_api/queue/join', {method: 'POST', body: '{}', "
            "headers: {'Content-Type': 'application/json'}}).then(r => r.text())",
        ):
            read = page.evaluate(request.replace("URL", f"'{victim.url}'") + ".catch(() => 'refused')")
            assert read == "refused"
        answered = page.evaluate(
            f"fetch('{victim.url}/gradio_api/queue/join', {{method: 'POST', mode: 'no-cors', body: '{{}}'}})"
            ".then(r => r.type).catch(() => 'refused')"
        )
        assert answered in ("opaque", "refused")
