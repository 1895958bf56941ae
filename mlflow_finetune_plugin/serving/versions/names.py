"""The names of models in requests (``my-bot@champion``, ``my-bot/7``, ``my-bot``, or a base's own name), and of services."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from urllib.parse import quote

from mlflow_finetune_plugin.store.model_ref import ModelRef

_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_LONGEST = 600


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a name or address, which may be in brackets."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def http_address(host: str, port: int) -> str:
    """Return the address at which this machine reaches a service that listens on ``host``; loopback for all addresses."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def parse(model_id: str, models: frozenset[str]) -> ModelRef | None:
    """Return what a client's ``model`` refers to among the served models; None for anything else."""
    if len(model_id) > _LONGEST:
        return None
    if model_id in models:
        return ModelRef(model_id)
    name, at, alias = model_id.rpartition("@")
    if at and name in models:
        return ModelRef(name, alias=alias) if alias else None
    name, slash, version = model_id.rpartition("/")
    if slash and name in models and _VERSION.fullmatch(version):
        return ModelRef(name, version=version)
    return None


def served_name(model: str, version: str, adapter_digest: str) -> str:
    """Return an engine's name for a version. It has the digest, so that one name never means two adapters."""
    return f"{model}/{version}-{adapter_digest[:12]}"


def header_value(text: str) -> str:
    """Return a text as one line of ASCII, percent-encoded where needed, so that no name can add a header."""
    return quote(text, safe=" /@._-+:,;=()[]{}~!$&'*?#|")
