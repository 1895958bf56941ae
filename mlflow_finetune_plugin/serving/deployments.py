"""``mlflow deployments -t finetune``: services of this machine, each a process that outlives the shell that started it.

Files beside the job folders describe the deployments, so that any shell of the same user can list, query, update and delete
them.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from mlflow.deployments import BaseDeploymentClient, PredictionsResponse
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_ALREADY_EXISTS

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving.engines.engine import free_port
from mlflow_finetune_plugin.serving.local_services import (
    FLAVOR,
    LOOPBACK,
    Deployment,
    alone,
    check_name,
    check_port,
    deployments_root,
    end,
    folder_of,
    headers,
    read,
    run_in_foreground,
    start,
)
from mlflow_finetune_plugin.serving.settings import SETTINGS
from mlflow_finetune_plugin.store.model_ref import parse_model_ref

_PORT_S = 15.0  # how long a port may stay busy after its process has ended
_HELP = {
    **{setting.option.name: setting.help for setting in SETTINGS},
    "port": "the port to listen on (default: a free one)",
    "timeout": "seconds that create and update wait for the first answer (default: 900)",
}
_SETTINGS_BY_NAME = {setting.option.name: setting for setting in SETTINGS}
_EARLIER_NAMES = {s.option.earlier_name: s.option.name for s in SETTINGS if s.option.earlier_name is not None}


def target_help() -> str:
    """Return the text of ``mlflow deployments help -t finetune``."""
    options = "\n".join(f"  {name:<17} {text}" for name, text in _HELP.items())
    return f"""Target finetune: serves models that mlflow-finetune registered, with OpenAI's API, on this machine.

Model URIs: models:/NAME@ALIAS (followed live), models:/NAME/VERSION, models:/NAME (by its split, else champion).

  mlflow deployments create -t finetune --name prod -m models:/my-bot@champion -C engine=vllm -C port=8000
  mlflow deployments predict -t finetune --name prod -I rows.json      # rows with `prompt` or `messages`

Options (-C NAME=VALUE):
{options}
"""


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serve in the foreground until Ctrl-C or SIGTERM, and exit with the service's exit status."""
    check_name(name)
    _check_flavor(flavor)
    settings = _settings(config)
    settings.setdefault("port", "8000")
    raise SystemExit(run_in_foreground(_model_id(model_uri), settings))


class FinetuneDeploymentClient(BaseDeploymentClient):
    """MLflow's client for deployments on this machine."""

    def create_deployment(
        self,
        name: str,
        model_uri: str,
        flavor: str | None = None,
        config: Mapping[str, Any] | None = None,
        endpoint: str | None = None,
    ) -> dict[str, Any]:
        """Start a deployment, and return after its first answer. Raises MlflowException if it gives none."""
        _check_flavor(flavor)
        check_name(name)
        model = _model_id(model_uri)
        settings = _settings(config)
        with alone(name):
            folder = folder_of(name)
            if (folder / "deployment.json").exists():
                raise MlflowException(
                    f"deployment {name!r} exists already; fix: choose another name, or update or delete it",
                    RESOURCE_ALREADY_EXISTS,
                )
            folder.mkdir(parents=True, exist_ok=True)  # it exists if an earlier create was killed
            try:
                port = int(settings.get("port") or free_port())
                return start(name, model_uri, model, settings, port=port).to_dict()
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
        """Restart a deployment with changed options, on its port unless ``config`` has another one.

        If the changed deployment gives no answer, it is restarted as it was before. A moved alias needs no update.
        """
        _check_flavor(flavor)
        with alone(name):
            before = read(name)
            uri = model_uri or before.model_uri
            changes = _settings(config)
            settings = {**before.settings, **changes}
            model = _model_id(uri)
            port = int(changes.get("port") or before.port)
            if port != before.port:
                check_port(settings.get("host", LOOPBACK), port)  # before the running service is ended
            end(before)
            try:
                return start(name, uri, model, settings, port=port, port_wait_s=_PORT_S).to_dict()
            except MlflowException as error:
                start(name, before.model_uri, before.model, before.settings, port=before.port, port_wait_s=_PORT_S)
                raise MlflowException(f"{error.message}; the deployment serves {before.model_uri} as before") from error

    def delete_deployment(
        self, name: str, config: Mapping[str, Any] | None = None, endpoint: str | None = None
    ) -> None:
        """End and remove a deployment; running answers end first. As MLflow requires, a missing one is not an error."""
        with alone(name):
            if (folder_of(name) / "deployment.json").exists():
                end(read(name))
                shutil.rmtree(folder_of(name))

    def list_deployments(self, endpoint: str | None = None) -> list[dict[str, Any]]:
        root = deployments_root()
        names = sorted(path.parent.name for path in root.glob("*/deployment.json")) if root.is_dir() else []
        return [read(name).to_dict() for name in names]

    def get_deployment(self, name: str, endpoint: str | None = None) -> dict[str, Any]:
        return read(name).to_dict()

    def predict(
        self, deployment_name: str | None = None, inputs: Any = None, endpoint: str | None = None
    ) -> PredictionsResponse:
        """Answer each row, with the version that answered.

        Args:
            deployment_name: The deployment.
            inputs: Rows with ``prompt`` or ``messages``: a DataFrame, a list or one dict. Other columns are sampling fields.
            endpoint: Not used.
        """
        deployment = read(_named(deployment_name)).answering()
        answers = []
        with httpx.Client(base_url=deployment.url, headers=headers(), timeout=None, trust_env=False) as client:
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
        """Yield OpenAI's chunks of one answer."""
        deployment = read(_named(deployment_name)).answering()
        (row,) = _rows(inputs)
        body = {**_body(deployment, row), "stream": True}
        with (
            httpx.Client(base_url=deployment.url, headers=headers(), timeout=None, trust_env=False) as client,
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


# arguments ---------------------------------------------------------------------------------------------------------------


def _model_id(uri: str) -> str:
    """Return the router's name for a model URI: ``models:/NAME@ALIAS`` becomes ``NAME@ALIAS``. Raises MlflowException."""
    try:
        return str(parse_model_ref(uri.removeprefix("models:/")))  # the prefix is optional, as in all commands
    except ConfigError as error:
        raise MlflowException(error.problems[0], INVALID_PARAMETER_VALUE) from error


def _settings(config: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the options by name, checked. Raises MlflowException."""
    options = {
        _EARLIER_NAMES.get(str(name), str(name)): str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in (config or {}).items()
    }
    unknown = sorted(options.keys() - _HELP.keys())
    if unknown:
        raise MlflowException(
            f"unknown option {unknown[0]!r}; fix: use one of {', '.join(_HELP)}", INVALID_PARAMETER_VALUE
        )
    for name, text in options.items():
        fix = _option_fix(name, text)
        if fix is not None:
            raise MlflowException(f"{name} {text!r}: not valid; fix: -C {name}={fix}", INVALID_PARAMETER_VALUE)
    for name in options.keys() & _SETTINGS_BY_NAME.keys():
        if _SETTINGS_BY_NAME[name].option.kind == "path":
            options[name] = str(Path(options[name]).expanduser().resolve())  # the service may run in another folder
    return options


def _option_fix(name: str, text: str) -> str | None:
    """Return the values that an option may have if this text is none of them."""
    if name == "timeout":
        return None if _is_seconds(text) else "SECONDS, more than 0"
    option = _SETTINGS_BY_NAME[name].option
    if name == "port":
        return None if _is_port(text) else "NUMBER, from 1 to 65535, or leave it out for a free one"
    if option.choices:
        return None if text in option.choices else " or ".join(option.choices)
    if option.kind == "integer":
        return None if text.isdecimal() and int(text) > 0 else "NUMBER, from 1"
    if option.kind == "seconds":
        return None if _is_seconds(text) else "SECONDS, more than 0"
    if option.kind == "switch":
        return None if text in ("true", "false") else "true or false"
    return None


def _is_port(text: str) -> bool:
    return text.isdecimal() and 1 <= int(text) <= 65535


def _is_seconds(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _check_flavor(flavor: str | None) -> None:
    if flavor not in (None, FLAVOR, "python_function"):
        raise MlflowException(f"flavor {flavor!r}: not supported; fix: leave it out", INVALID_PARAMETER_VALUE)


def _named(name: str | None) -> str:
    if name is None:
        raise MlflowException("no deployment name; fix: --name NAME", INVALID_PARAMETER_VALUE)
    return name


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
        raise MlflowException("no rows; fix: give rows with `prompt` or `messages`", INVALID_PARAMETER_VALUE)
    return rows


def _body(deployment: Deployment, row: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key: value for key, value in row.items() if key not in ("prompt", "messages", "model", "stream")}
    if isinstance(row.get("messages"), list):
        messages = row["messages"]
    elif isinstance(row.get("prompt"), str):
        messages = [{"role": "user", "content": row["prompt"]}]
    else:
        raise MlflowException(
            f"a row has only {sorted(map(str, row))}; fix: give it `prompt` or `messages`", INVALID_PARAMETER_VALUE
        )
    return {**fields, "model": deployment.model, "messages": messages}


def _check(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        raise MlflowException(f"{answer.status_code}: {answer.json()['error']['message']}")
