"""The whole path as a user takes it: ``mlflow run`` trains, proves and registers; then serve, vote in the playground, promote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from conftest import REPOSITORY, make_workplace, wait_for
from gradio_client import Client
from openai import OpenAI
from playground_process import REAL_PAGE, playground
from serving_process import serving

pytestmark = pytest.mark.whole_path

QUICKSTART = REPOSITORY / "recipes" / "quickstart"


def test_run_prove_register_serve_vote_promote(tmp_path: Path, empty_store: Path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    workplace = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    rows = [json.loads(line) for line in (QUICKSTART / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()]

    training = workplace.mlflow_run(str(QUICKSTART), "-e", "lora")
    assert training.returncode == 0, training.stdout[-3000:]
    client = workplace.client()
    version = client.get_model_version_by_alias("quickstart", "challenger")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["eval/gain_low/exact_match"] > 0.2
    assert "champion version 1, because quickstart had none and this version passed the gate" in " ".join(
        training.stdout.split()
    )
    assert client.get_model_version_by_alias("quickstart", "champion").version == version.version
    assert "\nalready champion: quickstart version 1; " in workplace.cli("promote", "quickstart").stdout

    with serving(
        tmp_path, workplace.tracking_uri, "quickstart", "--engine", "transformers", "--poll", "0.2"
    ) as service:
        openai = OpenAI(base_url=service.url + "/v1", api_key="none")
        answers = [
            openai.chat.completions.create(
                model="quickstart",
                messages=[{"role": "user", "content": row["prompt"]}],
                temperature=0,
                max_tokens=8,
            )
            for row in rows[:8]
        ]
        texts = [answer.choices[0].message.content.strip() for answer in answers]
        assert sum(text == row["completion"] for text, row in zip(texts, rows, strict=False)) >= 4

        vote_in_the_playground(workplace, service.url + "/v1", rows[0]["prompt"])
        votes = workplace.cli("votes", "quickstart", "--json")
        assert votes.returncode == 0, votes.stdout
        assert [pair["votes"] for pair in json.loads(votes.stdout)["pairs"]] == [1]

        assert httpx.post(
            service.url + "/v1/chat/completions", json={"model": "quickstart@released", "messages": []}, timeout=30
        ).is_client_error
        promotion = workplace.cli("promote", "quickstart", "--to", "released", "--json")
        assert promotion.returncode == 0, promotion.stdout
        assert json.loads(promotion.stdout[promotion.stdout.index("{") :])["verdict"]["outcome"] == "promote"
        assert client.get_model_version_by_alias("quickstart", "released").version == version.version
        answer = wait_for(lambda: answer_of(openai, "quickstart@released"), 30, "answer of the promoted version")
        assert answer.headers["x-finetune-version"] == str(version.version)


def vote_in_the_playground(workplace, endpoint: str, prompt: str) -> None:
    """Compare the base with the challenger blind, vote for one side, and wait until the vote is counted."""
    sides = ("--side", "base", "--side", "quickstart@challenger", "--model", "quickstart")
    environment = {name: workplace.environment[name] for name in ("MLFLOW_TRACKING_URI", "MLFLOW_FINETUNE_HOME")}
    with playground(workplace.path, *sides, endpoint=endpoint, program=REAL_PAGE, **environment) as page:
        client = Client(page.url, verbose=False)
        last = list(client.submit(prompt, api_name="/chat"))[-1]
        assert last["can_vote"]
        assert "quickstart" not in json.dumps(last)
        vote = client.predict("left", api_name="/vote")
        assert set(vote["names"].values()) == {"base", "quickstart@challenger"}
        assert vote["has_receipts"]

        def is_counted() -> bool:
            pairs = client.predict(api_name="/standings")["pairs"]
            return bool(pairs) and pairs[0]["people"]["votes"] == 1

        wait_for(is_counted, 60, "counted vote")


def answer_of(openai: OpenAI, model: str):
    """Return the answer with its headers, or None as long as the router does not serve the model."""
    from openai import APIStatusError

    messages = [{"role": "user", "content": "hello"}]
    try:
        return openai.chat.completions.with_raw_response.create(model=model, messages=messages, max_tokens=4)
    except APIStatusError:
        return None
