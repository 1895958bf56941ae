"""Addresses of MLflow's own pages. A store without a server has none."""

from __future__ import annotations

from urllib.parse import quote, urlsplit


def run_page(tracking_uri: str, experiment_id: str, run_id: str) -> str | None:
    """Return the address of a run's page, or None where MLflow tracks without an HTTP server."""
    server = _server(tracking_uri)
    return server and f"{server}/#/experiments/{quote(experiment_id, safe='')}/runs/{quote(run_id, safe='')}"


def version_page(registry_uri: str, model: str, number: str) -> str | None:
    """Return the address of a registered version's page, or None where the registry has no HTTP server."""
    server = _server(registry_uri)
    return server and f"{server}/#/models/{quote(model, safe='')}/versions/{quote(number, safe='')}"


def _server(uri: str) -> str | None:
    """Return the server's address without user and password, because the address becomes part of the page."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return None
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
