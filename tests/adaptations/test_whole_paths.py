"""Each kind of adaptation on the whole path: run, prove, register, continue, serve, certify, promote and roll back with the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import REPOSITORY, Workplace, make_workplace, stop_jobs
from openai import OpenAI
from serving_process import serving, wait_until

from mlflow_finetune_plugin.store.names import CERTIFICATE_TAG

pytestmark = [pytest.mark.train, pytest.mark.process]

QUICKSTART = REPOSITORY / "recipes" / "quickstart"
ROWS = 8
GATE = "register: {name: quickstart, gate: {gain: {over: base, at_least: -0.5}}}"
"""A gate that every version passes: which one learns enough is not the matter here."""
MERGES = {"full": True, "prompt": False, "prefix": False, "ptuning": False, "vera": True, "loha": True, "miss": True}
"""Whether the adaptation can be merged into the base."""


def trained(workplace: Workplace, adaptation: str, *more: str) -> tuple[str, list[dict[str, Any]]]:
    """Train and register a version. Returns its number, and the rows of its proof."""
    run = workplace.finetune_run(
        *("project", "-e", "lora", "-P", f"adaptation={adaptation}", "-P", "max_steps=15"),
        *("-P", "max_rows=24", "-P", "forgetting=null", "-P", "learning_rate=1e-2", *more),
    )
    assert run.returncode == 0, run.stdout[-3000:]
    client = workplace.client()
    version = max(client.search_model_versions("name='quickstart'"), key=lambda version: int(version.version))
    assert version.tags["finetune.adaptation"] == adaptation
    assert client.get_run(version.run_id).data.metrics["reload/max_nats"] < 1e-4
    mlflow.set_tracking_uri(workplace.tracking_uri)
    table = mlflow.artifacts.load_dict(f"runs:/{version.run_id}/proof/rows.json")
    return str(version.version), [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


@pytest.mark.parametrize("adaptation", MERGES)
def test_run_continue_serve_certify_promote_roll_back(adaptation: str, tmp_path: Path, empty_store: Path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    workplace = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    project = Path(shutil.copytree(QUICKSTART, workplace.path / "project"))
    recipe = (project / "finetune.yaml").read_text(encoding="utf-8")
    recipe = recipe.replace("register: {name: quickstart}", GATE).replace("options: {rank: 16}\n", "")
    (project / "finetune.yaml").write_text(recipe, encoding="utf-8")
    try:
        go(adaptation, workplace, tmp_path)
    finally:
        stop_jobs(workplace)


def go(adaptation: str, workplace: Workplace, folder: Path) -> None:
    client = workplace.client()
    first, _ = trained(workplace, adaptation)
    second, rows = trained(workplace, adaptation, "-P", f"start_from=models:/quickstart/{first}")
    if (
        "champion" not in client.get_registered_model("quickstart").aliases
    ):  # a first version that is no better takes no alias
        assert workplace.cli("promote", "quickstart", "--version", first).returncode == 0
    assert str(client.get_model_version_by_alias("quickstart", "champion").version) == first
    client.set_registered_model_alias("quickstart", "challenger", second)
    with serving(folder, workplace.tracking_uri, "quickstart", "--engine", "transformers", "--poll", "0.2") as service:
        openai = OpenAI(base_url=service.url + "/v1", api_key="none")

        def ask(model: str, prompt: str) -> Any:
            turns = [{"role": "user", "content": prompt}]
            return openai.chat.completions.with_raw_response.create(
                model=model, messages=turns, temperature=0, max_tokens=8
            )

        def answered_by(model: str) -> str:
            return str(ask(model, "hello").headers["x-finetune-version"])

        answers = [ask("quickstart@challenger", row["prompt"]).parse() for row in rows[:ROWS]]
        assert [answer.choices[0].message.content for answer in answers] == [r["adapter_answer"] for r in rows[:ROWS]]
        tags = client.get_model_version("quickstart", second).tags
        assert any(name.startswith(CERTIFICATE_TAG) for name in tags), tags

        promotion = workplace.cli("promote", "quickstart", "--version", second, "--json")
        assert promotion.returncode == 0, promotion.stdout
        assert json.loads(promotion.stdout[promotion.stdout.index("{") :])["verdict"]["outcome"] == "promote"
        wait_until(lambda: answered_by("quickstart") == second, 60)
        back = workplace.cli("rollback", "quickstart", "--reason", "test")
        assert back.returncode == 0, back.stdout
        wait_until(lambda: answered_by("quickstart") == first, 60)
    merged = workplace.cli("export", f"quickstart/{second}", "--merged", str(folder / "merged"))
    if MERGES[adaptation]:
        assert merged.returncode == 0, merged.stdout
    else:
        assert merged.returncode != 0
        assert "does not change the base's weights, so it cannot be merged" in " ".join(merged.stdout.split())
