"""Virtual tokens on the whole path: run, prove, register, continue, serve, certify, promote and roll back with the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlflow
import pytest
from conftest import REPOSITORY, Workplace, make_workplace
from openai import OpenAI
from serving_process import serving

from mlflow_finetune_plugin.store.names import CERTIFICATE_TAG

pytestmark = [pytest.mark.train, pytest.mark.process]

QUICKSTART = REPOSITORY / "recipes" / "quickstart"
ROWS = 8
GATE = "register: {name: quickstart, gate: {gain: {over: base, at_least: -0.5}}}"
"""A gate that every version passes: which one learns enough is not the matter here."""


def trained(workplace: Workplace, adaptation: str, steps: int, *more: str) -> tuple[str, list[dict[str, str]]]:
    """Train and register a version. Returns its number, and the rows of its proof."""
    run = workplace.finetune_run(
        *("project", "-e", "prompt", "-P", f"adaptation={adaptation}", "-P", f"max_steps={steps}"),
        *("-P", "max_rows=24", "-P", "forgetting=null", *more),
    )
    assert run.returncode == 0, run.stdout[-3000:]
    client = workplace.client()
    version = max(client.search_model_versions("name='quickstart'"), key=lambda version: int(version.version))
    mlflow.set_tracking_uri(workplace.tracking_uri)
    table = mlflow.artifacts.load_dict(f"runs:/{version.run_id}/proof/rows.json")
    return str(version.version), [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


@pytest.mark.parametrize("adaptation", ["prompt", "prefix"])
def test_run_continue_serve_certify_promote_roll_back(adaptation: str, tmp_path: Path, empty_store: Path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    workplace = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    project = Path(shutil.copytree(QUICKSTART, workplace.path / "project"))
    recipe = (project / "finetune.yaml").read_text(encoding="utf-8")
    (project / "finetune.yaml").write_text(recipe.replace("register: {name: quickstart}", GATE), encoding="utf-8")
    client = workplace.client()
    first, _ = trained(workplace, adaptation, 40)
    second, rows = trained(workplace, adaptation, 12, "-P", f"start_from=models:/quickstart/{first}")
    with serving(
        tmp_path, workplace.tracking_uri, "quickstart", "--engine", "transformers", "--poll", "0.2"
    ) as service:
        openai = OpenAI(base_url=service.url + "/v1", api_key="none")
        answers = [
            openai.chat.completions.create(
                model="quickstart@challenger",
                messages=[{"role": "user", "content": row["prompt"]}],
                temperature=0,
                max_tokens=8,
            )
            for row in rows[:ROWS]
        ]
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts == [row["adapter_answer"] for row in rows[:ROWS]]
    tags = client.get_model_version("quickstart", second).tags
    assert any(name.startswith(CERTIFICATE_TAG) for name in tags), tags

    assert str(client.get_model_version_by_alias("quickstart", "champion").version) == first
    promotion = workplace.cli("promote", "quickstart", "--version", second, "--json")
    assert promotion.returncode == 0, promotion.stdout
    assert json.loads(promotion.stdout[promotion.stdout.index("{") :])["verdict"]["outcome"] == "promote"
    assert str(client.get_model_version_by_alias("quickstart", "champion").version) == second
    back = workplace.cli("rollback", "quickstart")
    assert back.returncode == 0, back.stdout
    assert str(client.get_model_version_by_alias("quickstart", "champion").version) == first
    merged = workplace.cli("export", f"quickstart/{second}", "--merged", str(tmp_path / "merged"))
    assert merged.returncode != 0
    assert "does not change the base's weights, so it cannot be merged" in " ".join(merged.stdout.split())
