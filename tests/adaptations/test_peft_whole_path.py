"""Methods of PEFT from ``mlflow run`` to a rollback: train, prove, register, serve, certify, continue, promote, roll back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx
import pytest
from conftest import REPOSITORY, make_workplace, stop_jobs
from serving_process import serving, wait_until

pytestmark = [pytest.mark.train, pytest.mark.process]

QUICKSTART = REPOSITORY / "recipes" / "quickstart"
QUICK = ("-P", "num_train_epochs=1", "-P", "eval.forgetting=false")
FIRST = {"vera": QUICK, "loha": QUICK, "miss": (*QUICK, "-P", "max_steps=20")}
"""Settings of the first run, which must leave the second one something to learn: ``miss`` learns the task in one epoch."""


@pytest.mark.parametrize("adaptation", FIRST)
def test_a_method_goes_from_a_run_to_a_rollback(adaptation: str, tmp_path: Path, empty_store: Path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    workplace = make_workplace(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}")
    try:
        go(adaptation, workplace, tmp_path)
    finally:
        stop_jobs(workplace)


def go(adaptation: str, workplace, folder: Path) -> None:
    client = workplace.client()
    training = workplace.mlflow_run(str(QUICKSTART), "-e", "lora", "-P", f"adaptation={adaptation}", *FIRST[adaptation])
    assert training.returncode == 0, training.stdout[-3000:]
    version = client.get_model_version_by_alias("quickstart", "challenger")
    run = client.get_run(version.run_id)
    assert run.data.tags["finetune.adaptation"] == adaptation
    assert run.data.metrics["reload/max_nats"] < 1e-4
    first_champion = client.get_model_version_by_alias("quickstart", "champion")
    assert first_champion.version == version.version, training.stdout[-3000:]

    with serving(folder, workplace.tracking_uri, "quickstart", "--engine", "transformers", "--poll", "0.2") as service:
        served(service.url, "1")
        assert [tag for tag in tags(client, "1") if tag.startswith("finetune.certificate.")]

        continued = workplace.mlflow_run(
            str(QUICKSTART), "-e", "lora", "-P", "start_from=models:/quickstart@champion", *QUICK
        )
        assert continued.returncode == 0, continued.stdout[-3000:]
        assert tags(client, "2")["finetune.adaptation"] == adaptation
        promotion = workplace.cli("promote", "quickstart", "--json")
        assert promotion.returncode == 0, promotion.stdout
        assert json.loads(promotion.stdout[promotion.stdout.index("{") :])["verdict"]["outcome"] == "promote"
        served(service.url, "2")
        rollback = workplace.cli("rollback", "quickstart", "--reason", "test")
        assert rollback.returncode == 0, rollback.stdout
        served(service.url, "1")


def tags(client, number: str) -> dict[str, str]:
    return dict(client.get_model_version("quickstart", number).tags)


def served(url: str, number: str) -> None:
    """Wait until the service answers with this version."""
    request = {"model": "quickstart", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}

    def answers() -> bool:
        answer = httpx.post(f"{url}/v1/chat/completions", json=request, timeout=60)
        return answer.status_code == 200 and answer.headers["x-finetune-version"] == number

    wait_until(answers, 60)
