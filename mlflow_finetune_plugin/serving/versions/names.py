"""What a request may call a model: ``my-bot@champion``, ``my-bot/7``, ``my-bot``, or a base by its own name."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote

_VERSION = re.compile(r"[1-9][0-9]{0,9}")
_LONGEST = 600


def is_loopback(host: str) -> bool:
    """Whether a name or address, with or without brackets, means this machine alone."""
    if host.lower() == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False


def http_address(host: str, port: int) -> str:
    """Where a service of this machine that listens on ``host`` can be asked; one on all addresses, on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@dataclass(frozen=True)
class Asked:
    """A registered model; with neither alias nor version, whoever its split chooses."""

    model: str
    alias: str | None = None
    version: str | None = None


def parse(model_id: str, models: frozenset[str]) -> Asked | None:
    """What ``model_id`` means among the served ``models``; None for anything else, however it is written."""
    if len(model_id) > _LONGEST:
        return None
    if model_id in models:
        return Asked(model_id)
    name, at, alias = model_id.rpartition("@")
    if at and name in models:
        return Asked(name, alias=alias) if alias else None
    name, slash, version = model_id.rpartition("/")
    if slash and name in models and _VERSION.fullmatch(version):
        return Asked(name, version=version)
    return None


def served_name(model: str, version: str, adapter_digest: str) -> str:
    """What an engine calls a version: with the digest, so that one name never means two adapters. Answers carry it."""
    return f"{model}/{version}-{adapter_digest[:12]}"


def header_value(text: str) -> str:
    """Any text as one line of ASCII, percent-encoded where it has to be: nobody's name can add a header."""
    return quote(text, safe=" /@._-+:,;=()[]{}~!$&'*?#|")
