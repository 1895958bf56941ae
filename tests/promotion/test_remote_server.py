"""A real ``mlflow server``: moves over REST, and under its permissions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest
from alias_moves import (
    AFTER_THE_ALIAS,
    aliases_of,
    evidence,
    faults_after_settling,
    moves_of,
    processes,
    promote,
    promote_in_turn,
    register_versions,
    run_killed,
    take_back,
)
from conftest import NO_JOBS, Server, wait_for
from mlflow import MlflowClient

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.errors import LeaseError, MoveError, TrackingError
from mlflow_finetune_plugin.promotion.moves.audit import history, promotions_experiment
from mlflow_finetune_plugin.promotion.moves.move import promote_version, roll_back
from mlflow_finetune_plugin.promotion.moves.settlement import settle


def test_moves_over_rest_are_settled_and_recorded_like_others(server, monkeypatch, capsys):
    client = MlflowClient(server.uri)
    register_versions(client, "bot", 4)
    promote(client, "bot", "1", None)
    promote(client, "bot", "2", "1")
    assert run_killed(server.uri, AFTER_THE_ALIAS, take_back, "bot")  # before `previous` is set
    assert aliases_of(client, "bot") == ("1", "1")
    assert settle(client, "bot").how == "finished"
    assert aliases_of(client, "bot") == ("1", "2")
    together = [processes().Process(target=promote_in_turn, args=(server.uri, "bot", 4, 1)) for _ in range(4)]
    for process in together:
        process.start()
    for process in together:
        process.join(200)
    assert [process.exitcode for process in together] == [0] * 4
    assert faults_after_settling(client, "bot") == []
    assert len(moves_of(client, "bot")) == 3 + 4
    assert run_killed(server.uri, AFTER_THE_ALIAS, take_back, "bot")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    mlflow.set_tracking_uri(server.uri)
    capsys.readouterr()
    assert main(["history", "bot", "--json"]) == 0
    out, err = capsys.readouterr()
    assert "was cut off after the alias had moved; it is finished" in err
    assert [move["kind"] for move in json.loads(out)].count("rollback") == 2
    assert main(["rollback", "bot"]) == 0
    assert capsys.readouterr().out.startswith("bot: champion ")
    assert faults_after_settling(client, "bot") == []


PASSWORD = "a long password"


class ServerWithLogin(Server):
    """``mlflow server --app-name basic-auth``, with users ann, ben and cid.

    The app wants Flask-WTF for the form with which people sign up in a browser, which nothing here uses: where that
    package is not installed a stand-in that protects no form takes its place. Users and permissions are MLflow's own.
    """

    def start(self) -> None:
        path = self.path
        if find_spec("flask_wtf") is None:
            package = path / "stand_in" / "flask_wtf"
            package.mkdir(parents=True)
            (package / "__init__.py").write_text("")
            (package / "csrf.py").write_text("class CSRFProtect:\n    def init_app(self, app):\n        pass\n")
        (path / "auth.ini").write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{path / 'auth.db'}\nadmin_username = admin\n"
            f"admin_password = {PASSWORD}\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            "grant_default_workspace_access = true\n"
            "auth_cache_ttl_seconds = 600\n"  # else each request pays for a slow hash of its password
        )
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{path / 'server.db'}", "--workers", "1"]
        with (path / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--artifacts-destination", str(path / "artifacts")],
                cwd=path,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    **NO_JOBS,
                    "MLFLOW_AUTH_CONFIG_PATH": str(path / "auth.ini"),
                    "MLFLOW_FLASK_SERVER_SECRET_KEY": "not secret here",
                    "PYTHONPATH": os.pathsep.join([str(path / "stand_in"), os.environ.get("PYTHONPATH", "")]),
                },
            )
        wait_for(self._answers, 90, "tracking server")


@pytest.fixture
def login_server(tmp_path: Path, empty_store: Path) -> Any:
    found = ServerWithLogin(tmp_path, empty_store)
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def become(login_server, monkeypatch):
    """A client of whoever is named: the admin; ann, who may edit all of "bot"; ben, nothing; cid, its model alone."""

    def admin_asks(route: str, **body: str) -> None:
        answer = httpx.post(f"{login_server.uri}/api/{route}", json=body, auth=("admin", PASSWORD), timeout=20)
        assert answer.status_code == 200, answer.text

    def become(user: str) -> MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        return MlflowClient(login_server.uri)

    client = become("admin")
    register_versions(client, "bot", 4)
    for user in ("ann", "ben", "cid"):
        admin_asks("2.0/mlflow/users/create", username=user, password=PASSWORD)
    experiment = promotions_experiment(client, "bot")
    for user, kind, what in (
        ("ann", "registered_model", "bot"), ("ann", "experiment", experiment), ("cid", "registered_model", "bot"),
    ):  # fmt: skip
        admin_asks(
            "3.0/mlflow/users/permissions/grant", username=user, resource_type=kind, resource_id=what, permission="EDIT"
        )
    return become


@pytest.mark.process
def test_the_servers_permissions_hold(login_server, become, monkeypatch):
    """Who may not edit the model moves nothing and is told; who may edit can do all of it without the right to delete."""

    client = become("ann")
    promote_version(client, "bot", "1", evidence=evidence(None))
    promote_version(client, "bot", "2", evidence=evidence("1"))
    assert run_killed(login_server.uri, AFTER_THE_ALIAS, take_back, "bot")
    assert settle(client, "bot").how == "finished"
    assert aliases_of(client, "bot") == ("1", "2")
    assert history(client, "bot")[0].who.startswith("ann@")

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not hers")
    with pytest.raises(TrackingError, match="asks who you are"):
        roll_back(client, "bot")
    client = become("ben")
    with pytest.raises(MoveError, match=r"does not let ben@.* EDIT on the registered model 'bot'"):
        promote_version(client, "bot", "3", evidence=evidence("1"))
    with pytest.raises(MoveError, match="does not let ben@"):
        roll_back(client, "bot")
    assert aliases_of(client, "bot") == ("1", "2")
    assert faults_after_settling(client, "bot") == []
    assert len(history(client, "bot")) == 3

    client = become("cid")  # may move, but not record
    move = roll_back(client, "bot")
    assert (move.run_id, aliases_of(client, "bot")) == (None, ("2", "1"))
    assert "403" in str(move.unrecorded)

    client = become("ann")
    assert settle(client, "bot").how == "recorded"
    assert history(client, "bot")[0].who.startswith("cid@")
    assert faults_after_settling(client, "bot") == []

    assert run_killed(login_server.uri, AFTER_THE_ALIAS, take_back, "bot")  # ann's lease stays
    client = become("cid")
    with pytest.raises(LeaseError, match=r"ann@.* left a lease behind, which you may not end; fix: let ann call again"):
        roll_back(client, "bot")
    client = become("ann")
    assert settle(client, "bot").how == "finished"
    assert faults_after_settling(client, "bot") == []
    shutil.rmtree(login_server.path / "artifacts", ignore_errors=True)
