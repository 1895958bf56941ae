"""``mlflow deployments -t finetune``: services of this machine, each a process that outlives the shell that made it.

What there is stands in files beside the job folders, so any shell of the same user can list, ask, update and delete it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.utils.models import _parse_model_uri

from mlflow_finetune_plugin.jobs import jobs_home

FLAVOR = "finetune"
KEY_VARIABLE = "MLFLOW_FINETUNE_API_KEY"
_READY_S = 900.0
_END_S = 90.0

_OPTIONS = {
    "engine": "auto, vllm or transformers",
    "host": "default 127.0.0.1; another needs api_key_file",
    "port": "default: a free one",
    "api_key_file": "who may ask; predict then takes its key from " + KEY_VARIABLE,
    "poll": "seconds between two looks at the registry",
    "store": "folder of adapters on this disk",
    "max_store": "bytes of all adapters",
    "base_model": "folder where the base is now",
    "max_body": "bytes of a request",
    "max_loaded": "versions in engines, unless more are meant by aliases",
    "max_loras": "adapters in one batch of vLLM",
    "max_cpu_loras": "adapters that vLLM keeps in memory",
    "max_rank": "of later versions",
    "max_model_len": "tokens of prompt and answer",
    "max_num_seqs": "answers at the same time per engine",
    "timeout": "seconds that create and update wait for the first answer (default 900)",
}


def target_help() -> str:
    """What ``mlflow deployments help -t finetune`` prints."""
    options = "\n".join(f"  {name:<14} {told}" for name, told in _OPTIONS.items())
    return f"""Target finetune: serves models that mlflow-finetune registered, with OpenAI's API, on this machine.

Model URIs: models:/NAME@ALIAS (followed live), models:/NAME/VERSION, models:/NAME (by its split, else champion).

  mlflow deployments create -t finetune --name prod -m models:/my-bot@champion -C engine=vllm -C port=8000
  mlflow deployments predict -t finetune --name prod -I rows.json      # rows with `prompt` or `messages`

Options (-C NAME=VALUE):
{options}
"""


def run_local(
    target: str, name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Serves in the foreground until Ctrl-C."""
    _check_flavor(flavor)
    settings = _settings(config)
    settings.setdefault("port", "8000")
    raise SystemExit(subprocess.call(_command(_model_id(model_uri).partition("@")[0].partition("/")[0], settings)))


@dataclass
class Deployment:
    """One service. ``started``: the process's own start time, so that another one with its number is not taken for it."""

    name: str
    model_uri: str
    model: str
    host: str
    port: int
    pid: int
    started: float
    tracking_uri: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{self.host if self.host not in ('0.0.0.0', '::') else '127.0.0.1'}:{self.port}"

    @property
    def process(self) -> psutil.Process | None:
        try:
            found = psutil.Process(self.pid)
            return (
                found
                if abs(found.create_time() - self.started) < 1 and found.status() != psutil.STATUS_ZOMBIE
                else None
            )
        except psutil.NoSuchProcess:
            return None

    def told(self) -> dict[str, Any]:
        """As MLflow's commands show it."""
        return {
            "name": self.name,
            "flavor": FLAVOR,
            "model_uri": self.model_uri,
            "model": self.model,
            "url": self.url + "/v1",
            "status": self.status(),
            "config": self.settings,
        }

    def status(self) -> str:
        """``ready``, ``degraded``, ``not ready``, or ``dead`` where its process is gone."""
        if self.process is None:
            return "dead"
        try:
            return str(httpx.get(self.url + "/readyz", timeout=5, trust_env=False).json()["status"])
        except httpx.HTTPError:
            return "not ready"


class FinetuneDeploymentClient(BaseDeploymentClient):
    """Deployments of this machine."""

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Returns when the first answer has been given. Raises MlflowException when there will be none."""
        _check_flavor(flavor)
        _check_name(name)
        model = _model_id(model_uri)
        settings = _settings(config)
        folder = _folder(name)
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise MlflowException(
                f"deployment {name!r} is there already; fix: another name, or update or delete it",
                RESOURCE_ALREADY_EXISTS,
            ) from error
        try:
            return _start(name, model_uri, model, settings).told()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def update_deployment(
        self,
        name: str,
        model_uri: str | None = None,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Starts it again with what has changed. An alias that moves needs no update: it is followed."""
        _check_flavor(flavor)
        before = _read(name)
        uri = model_uri or before.model_uri
        settings = {**before.settings, **_settings(config)}
        model = _model_id(uri)
        _end(before)
        return {**_start(name, uri, model, settings).told(), "flavor": FLAVOR}

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """Lets running answers end. Deleting what is not there is no error, as MLflow asks for it."""
        if not (_folder(name) / "deployment.json").exists():
            return
        _end(_read(name))
        shutil.rmtree(_folder(name))

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        root = _root()
        names = sorted(path.parent.name for path in root.glob("*/deployment.json")) if root.is_dir() else []
        return [_read(name).told() for name in names]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        return _read(name).told()

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Rows with ``prompt`` or ``messages`` (a DataFrame, a list, one dict); other columns are sampling fields.

        One answer per row, with the version that gave it.
        """
        deployment = _read(_named(deployment_name))
        answers = []
        with httpx.Client(base_url=deployment.url, headers=_headers(), timeout=None, trust_env=False) as client:
            for row in _rows(inputs):
                answer = client.post("/v1/chat/completions", json=_body(deployment, row))
                _check(answer)
                content = answer.json()
                answers.append(
                    {
                        "answer": content["choices"][0]["message"]["content"],
                        "model": answer.headers["x-finetune-model"],
                        "version": answer.headers["x-finetune-version"],
                    }
                )
        return PredictionsResponse({"predictions": answers})

    def predict_stream(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """OpenAI's chunks of one answer."""
        deployment = _read(_named(deployment_name))
        (row,) = _rows(inputs)
        body = {**_body(deployment, row), "stream": True}
        with (
            httpx.Client(base_url=deployment.url, headers=_headers(), timeout=None, trust_env=False) as client,
            client.stream("POST", "/v1/chat/completions", json=body) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                _check(answer)
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise MlflowException(str(event["error"]["message"]))
                    yield event


# a service ---------------------------------------------------------------------------------------------------------------


def _start(name: str, model_uri: str, model: str, settings: dict[str, str]) -> Deployment:
    import mlflow

    folder = _folder(name)
    settings = {**settings}
    host = settings.get("host", "127.0.0.1")
    port = int(settings.get("port") or _free_port())
    log = folder / "service.log"
    registered = model.partition("@")[0].partition("/")[0]
    own = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri()}
    with log.open("ab") as out:
        process = subprocess.Popen(
            _command(registered, {**settings, "port": str(port)}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **own},
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    made = Deployment(name, model_uri, model, host, port, process.pid, started, own["MLFLOW_TRACKING_URI"], settings)
    (folder / "deployment.json").write_text(json.dumps(asdict(made)), encoding="utf-8")
    try:
        _wait_for_answer(made, process, log, float(settings.get("timeout", _READY_S)))
    except BaseException:
        _end(made)
        raise
    return made


def _command(registered: str, settings: Mapping[str, str]) -> list[str]:
    options = [(f"--{name.replace('_', '-')}", value) for name, value in settings.items() if name != "timeout"]
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "serve", registered]
    return [*command, *(word for option in options for word in option)]


def _wait_for_answer(made: Deployment, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    said = "it does not listen yet"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise MlflowException(f"deployment {made.name!r} ended with code {process.returncode}: {_tail(log)}")
        try:
            body = {"model": made.model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
            answer = httpx.post(
                made.url + "/v1/chat/completions", json=body, headers=_headers(), timeout=60, trust_env=False
            )
        except httpx.HTTPError:
            time.sleep(0.2)
            continue
        if answer.status_code == 200:
            return
        said = str(answer.json()["error"]["message"])
        if answer.status_code in (401, 404) and "has not told" not in said:
            break
        time.sleep(0.2)
    raise MlflowException(f"deployment {made.name!r} gives no answer: {said}")


def _end(deployment: Deployment) -> None:
    process = deployment.process
    if process is None:
        return
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs([process], timeout=_END_S)
    for one in alive:
        one.kill()
        psutil.wait_procs([one], timeout=10)


def _tail(log: Path) -> str:
    return " ".join(log.read_text(encoding="utf-8", errors="replace")[-1500:].split())


# what is given -----------------------------------------------------------------------------------------------------------


def _model_id(uri: str) -> str:
    """``models:/NAME@ALIAS`` -> ``NAME@ALIAS``."""
    try:
        if not uri.removeprefix("models:/").strip("/").count("/") and "@" not in uri and uri.startswith("models:/"):
            return uri.removeprefix("models:/")
        parsed = _parse_model_uri(uri)
    except MlflowException as error:
        raise MlflowException(
            f"{uri}: no model URI; fix: models:/NAME@ALIAS, models:/NAME/VERSION or models:/NAME",
            INVALID_PARAMETER_VALUE,
        ) from error
    if parsed.alias is not None:
        return f"{parsed.name}@{parsed.alias}"
    if parsed.version is not None:
        return f"{parsed.name}/{parsed.version}"
    raise MlflowException(f"{uri}: names no registered version; fix: models:/NAME/VERSION", INVALID_PARAMETER_VALUE)


def _settings(config: Mapping[str, Any] | None) -> dict[str, str]:
    given = {str(name): str(value) for name, value in (config or {}).items()}
    unknown = sorted(given.keys() - _OPTIONS.keys())
    if unknown:
        raise MlflowException(
            f"unknown option {unknown[0]!r}; fix: one of {', '.join(_OPTIONS)}", INVALID_PARAMETER_VALUE
        )
    for name in ("api_key_file", "store", "base_model"):
        if name in given:
            given[name] = str(Path(given[name]).expanduser().resolve())  # the service may stand elsewhere later
    return given


def _check_flavor(flavor: str | None) -> None:
    if flavor not in (None, FLAVOR, "python_function"):
        raise MlflowException(f"flavor {flavor!r}; fix: leave it out", INVALID_PARAMETER_VALUE)


def _check_name(name: str) -> None:
    if (
        not name
        or len(name) > 100
        or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
        or name[0] == "."
    ):
        raise MlflowException(f"name {name[:100]!r}; fix: letters, digits, . _ -", INVALID_PARAMETER_VALUE)


def _named(name: str | None) -> str:
    if name is None:
        raise MlflowException("no deployment is named; fix: --name NAME", INVALID_PARAMETER_VALUE)
    return name


def _root() -> Path:
    return jobs_home() / "deployments"


def _folder(name: str) -> Path:
    _check_name(name)
    return _root() / name


def _read(name: str) -> Deployment:
    try:
        return Deployment(**json.loads((_folder(name) / "deployment.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise MlflowException(
            f"no deployment {name!r}; fix: mlflow deployments list -t finetune", RESOURCE_DOES_NOT_EXIST
        ) from error


def _rows(inputs: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]]
    if hasattr(inputs, "to_dict") and hasattr(inputs, "columns"):
        rows = inputs.to_dict("records")
    elif isinstance(inputs, dict):
        rows = [inputs]
    elif isinstance(inputs, str):
        rows = [{"prompt": inputs}]
    else:
        rows = [{"prompt": row} if isinstance(row, str) else dict(row) for row in inputs or []]
    if not rows:
        raise MlflowException("no rows; fix: rows with `prompt` or `messages`", INVALID_PARAMETER_VALUE)
    return rows


def _body(deployment: Deployment, row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key: value for key, value in row.items() if key not in ("prompt", "messages", "model", "stream")}
    if isinstance(row.get("messages"), list):
        messages = row["messages"]
    elif isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    else:
        raise MlflowException(
            f"a row has `prompt` or `messages`; found {sorted(map(str, row))}", INVALID_PARAMETER_VALUE
        )
    return {**fields, "model": deployment.model, "messages": messages}


def _headers() -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _check(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        raise MlflowException(f"{answer.status_code}: {answer.json()['error']['message']}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
