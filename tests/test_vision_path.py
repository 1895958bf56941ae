"""A base that sees on the whole path: run, prove, register, serve, certify, promote and roll back with the real commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import REPOSITORY, Workplace, make_workplace
from openai import BadRequestError, OpenAI
from serving_process import serving

from mlflow_finetune_plugin.store.names import CERTIFICATE_TAG

pytestmark = [pytest.mark.train, pytest.mark.process]

RECIPE = REPOSITORY / "recipes" / "vision"
GATE = "register: {name: vision, gate: {gain: {over: base, at_least: -0.5}}}"
"""A gate that every version passes: which one learns enough is not the matter here."""
ROWS = 8


def trained(workplace: Workplace, steps: int) -> tuple[str, list[dict[str, Any]]]:
    """Train and register a version. Returns its number, and the rows of its proof."""
    run = workplace.finetune_run(
        *("project", "-e", "vision", "-P", f"max_steps={steps}", "-P", "max_rows=24", "-P", "forgetting=null")
    )
    assert run.returncode == 0, run.stdout[-3000:]
    version = max(workplace.client().search_model_versions("name='vision'"), key=lambda v: int(v.version))
    mlflow.set_tracking_uri(workplace.tracking_uri)
    table = mlflow.artifacts.load_dict(f"runs:/{version.run_id}/proof/rows.json")
    return str(version.version), [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_run_serve_certify_promote_roll_back(tmp_path: Path, empty_store: Path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    workplace = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    project = Path(shutil.copytree(RECIPE, workplace.path / "project"))
    recipe = (project / "finetune.yaml").read_text(encoding="utf-8")
    (project / "finetune.yaml").write_text(recipe.replace("register: {name: vision}", GATE), encoding="utf-8")
    client = workplace.client()
    first, _ = trained(workplace, 20)
    second, rows = trained(workplace, 60)
    lines = (project / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(lines[row["line"] - 1])["messages"][:1] for row in rows[:ROWS]]
    assert all("[picture]" in row["prompt"] for row in rows)

    loaded = mlflow.pyfunc.load_model(f"models:/vision/{second}")
    answers = [row["adapter_answer"] for row in rows[:ROWS]]
    assert loaded.predict([{"messages": question} for question in questions]) == answers

    client.set_registered_model_alias("vision", "challenger", second)
    with serving(tmp_path, workplace.tracking_uri, "vision", "--engine", "transformers", "--poll", "0.2") as service:
        openai = OpenAI(base_url=service.url + "/v1", api_key="none", max_retries=0)

        def ask(messages: list[dict[str, Any]]) -> str | None:
            answer = openai.chat.completions.create(
                model="vision@challenger", messages=messages, temperature=0, max_tokens=12
            )
            return answer.choices[0].message.content

        assert [ask(question) for question in questions] == answers
        part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
        with pytest.raises(BadRequestError, match=r"data URL|network"):
            ask([{"role": "user", "content": [part]}])
    tags = client.get_model_version("vision", second).tags
    assert any(name.startswith(CERTIFICATE_TAG) for name in tags), tags

    if (
        "champion" not in client.get_registered_model("vision").aliases
    ):  # a first version that is no better takes no alias
        assert workplace.cli("promote", "vision", "--version", first).returncode == 0
    assert str(client.get_model_version_by_alias("vision", "champion").version) == first
    promotion = workplace.cli("promote", "vision", "--version", second, "--json")
    assert promotion.returncode == 0, promotion.stdout
    assert json.loads(promotion.stdout[promotion.stdout.index("{") :])["verdict"]["outcome"] == "promote"
    assert str(client.get_model_version_by_alias("vision", "champion").version) == second
    back = workplace.cli("rollback", "vision")
    assert back.returncode == 0, back.stdout
    assert str(client.get_model_version_by_alias("vision", "champion").version) == first
    merged = workplace.cli("export", f"vision/{second}", "--merged", str(tmp_path / "merged"))
    assert merged.returncode == 0, merged.stdout
    assert (tmp_path / "merged" / "processor_config.json").is_file()
