"""A canary beside live traffic: a real router on the Transformers engine, and the command that widens what the router follows."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import httpx
import mlflow
import pytest
from serving_process import CHAT, ask, body, serving, wait_until

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.promotion.written_policy import write_policy
from mlflow_finetune_plugin.store.names import GATE_DIGEST_TAG, GATE_FOLDER
from mlflow_finetune_plugin.store.served_tags import served

ENOUGH = 110
"""Answers that show a 95th percentile far below its bound."""
POLICY = GatePolicy.model_validate({"gain": None, "latency": {"p95_ms": 1e6}})


class Users(threading.Thread):
    """Each asks once, for the model by its name alone."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__()
        self._url, self._model = url, model
        self.answers: list[tuple[int, str]] = []
        self.is_over = threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self.is_over.is_set():
                user = f"user {random.random()}"
                answer = client.post(CHAT, json=body(self._model, max_tokens=1, user=user))
                self.answers.append((answer.status_code, answer.headers.get("x-finetune-version", "")))


@pytest.mark.process
def test_live_traffic_goes_over_step_by_step_and_no_request_fails(tmp_path, registry):
    client = registry.client
    first, second = (registry.make("tried", seed=seed) for seed in (7, 8))
    client.set_registered_model_alias("tried", "champion", first)
    for version in (first, second):
        client.set_model_version_tag("tried", version, "finetune.base_digest", registry.digest)
    run_id, written = client.get_model_version("tried", second).run_id, write_policy(POLICY, {})
    client.log_text(run_id, written.to_json(), f"{GATE_FOLDER}/policy.json")
    client.set_tag(run_id, GATE_DIGEST_TAG, written.digest)
    mlflow.set_tracking_uri(registry.uri)
    engine = ("--engine", "transformers", "--poll", "0.2", "--tell-every", "0.3")
    with serving(tmp_path, registry.uri, "tried", *engine) as service:
        for version in (first, second):
            for _ in range(ENOUGH):
                assert ask(service, f"tried/{version}", max_tokens=1).status_code == 200
            told = lambda: served(client.get_model_version("tried", version).tags, version).values()  # noqa: B023, E731
            wait_until(lambda: any(one.answers >= ENOUGH for one in told()))  # noqa: B023
        users = Users(service.url, "tried")
        users.start()
        try:
            code = main(["promote", "tried", "--canary", "30,60", "--step", "6s", "--least-answers", "15"])
            wait_until(lambda: {version for _, version in users.answers[-20:]} == {second})
        finally:
            users.is_over.set()
            users.join()
    assert code == 0
    assert {status for status, _ in users.answers} == {200}
    model = client.get_registered_model("tried")
    assert {alias: str(version) for alias, version in model.aliases.items()} == {
        "champion": second,
        "challenger": second,
        "previous": first,
    }
    assert "finetune.split" not in model.tags
    (record,) = [one for one in history(client, "tried") if one.run_id]
    assert (record.outcome, record.is_moved) == ("promote", True)
    steps = json.loads(Path(client.download_artifacts(record.run_id, "verdict.json", ".")).read_text())["canary"][
        "steps"
    ]
    shares = [step["canary"]["answers"] / (step["canary"]["answers"] + step["champion"]["answers"]) for step in steps]
    # A step counts from the moment its share is written, the router takes it up to a second later.
    assert 0.08 < shares[0] < 0.42 < shares[1] < 0.75
    assert [step["canary"]["failed"] for step in steps] == [0, 0]
