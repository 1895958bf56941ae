"""Where MLflow's pages show a run or a version."""

from __future__ import annotations

import shlex
from urllib.parse import quote

from mlflow_finetune_plugin.errors import without_secrets

_LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where ``mlflow ui`` listens."""


def run_page(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of the run's page; for a store without a server also the command that shows it."""
    return _page(tracking_uri, f"/#/experiments/{experiment_id}/runs/{run_id}")


def version_page(tracking_uri: str, name: str, version: str) -> str:
    """Return the address of the version's page; for a store without a server also the command that shows it."""
    return _page(tracking_uri, f"/#/models/{quote(name)}/versions/{version}")


def _page(tracking_uri: str, path: str) -> str:
    if tracking_uri.startswith(("http://", "https://")):
        return f"{without_secrets(tracking_uri).rstrip('/')}{path}"
    if tracking_uri.startswith(("databricks", "uc")):
        return f"{path.removeprefix('/')} on {tracking_uri}"
    store = shlex.quote(without_secrets(tracking_uri))
    return f"{_LOCAL_PAGE}{path} while this runs: mlflow ui --backend-store-uri {store}"
