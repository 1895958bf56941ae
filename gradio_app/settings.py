"""What the playground is told at its start."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving.versions.names import is_loopback

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_LARGEST_PORT = 65535
_LEAST_SIDES = 2  # fewer are no comparison


@dataclass(frozen=True)
class PlaygroundSettings:
    """``endpoints``: base URLs that end in ``/v1``, the first one's models need no endpoint in their names.

    ``model``: the registered model whose votes are kept; None: votes are kept of no model, and the page says so.
    ``sides``: which models meet, as the endpoints call them; empty: challenger against champion, or against the base.
    ``keep_traces_days``: after which answers that nobody voted on are deleted from MLflow; None: never.
    ``user_header``: the header in which a proxy, one of ``trusted_proxies``, says who asks; ``promoters``: who of
    them may promote. ``public_hosts``: the names under which browsers reach the page through that proxy.
    """

    endpoints: tuple[str, ...]
    model: str | None = None
    sides: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 7860
    auth_file: Path | None = None
    user_header: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    promoters: tuple[str, ...] = ()
    public_hosts: tuple[str, ...] = ()
    prompt_sets: tuple[Path, ...] = ()
    keep_traces_days: float | None = None
    max_prompt_chars: int = 20_000
    max_turns: int = 50
    max_streams_per_session: int = 4
    max_streams: int = 256
    max_waiting: int = 512
    max_body_bytes: int = 4_000_000
    has_mcp: bool = False

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def check_settings(settings: PlaygroundSettings) -> None:
    """All faults that need nobody else's answer, at once. Raises ConfigError."""
    faults = _address_faults(settings) + _access_faults(settings)
    for path in settings.prompt_sets:
        if not (path.is_file() and os.access(path, os.R_OK)):
            faults.append(f"prompts {path}: cannot be read; fix: a JSONL file, a prompt a line")
    if settings.keep_traces_days is not None and settings.keep_traces_days <= 0:
        faults.append(f"keep traces {settings.keep_traces_days} days; fix: more than 0, or leave it out")
    limits = {
        "max prompt chars": settings.max_prompt_chars,
        "max turns": settings.max_turns,
        "max streams per session": settings.max_streams_per_session,
        "max streams": settings.max_streams,
        "max waiting": settings.max_waiting,
        "max body bytes": settings.max_body_bytes,
    }
    least = {"max streams per session": _LEAST_SIDES}
    faults += [
        f"{name} {value}; fix: a number from {least.get(name, 1)}"
        for name, value in limits.items()
        if value < least.get(name, 1)
    ]
    if faults:
        raise ConfigError(faults)


def _address_faults(settings: PlaygroundSettings) -> list[str]:
    faults = []
    if not settings.endpoints:
        faults.append("no endpoint; fix: --endpoint http://127.0.0.1:8000/v1")
    for endpoint in settings.endpoints:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            where = f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else endpoint[:100]
            faults.append(f"endpoint {where}; fix: http://HOST:PORT/v1, without user and password in it")
    if not 0 <= settings.port <= _LARGEST_PORT:
        faults.append(f"port {settings.port}; fix: a number up to {_LARGEST_PORT}")
    return faults


def _access_faults(settings: PlaygroundSettings) -> list[str]:
    faults = []
    if settings.auth_file is not None and settings.user_header is not None:
        faults.append("an auth file and a user header; fix: one of them says who asks")
    if settings.auth_file is None and settings.user_header is None and not settings.is_loopback:
        faults.append(
            f"host {settings.host}: without a login only this machine may open the page; fix: --auth-file FILE "
            "(mlflow-finetune users add FILE NAME makes one), --user-header NAME behind a proxy, or --host 127.0.0.1"
        )
    if settings.user_header is not None and not settings.user_header.replace("-", "").isalnum():
        faults.append(f"user header {settings.user_header!r}; fix: a header's name, such as X-Forwarded-User")
    if settings.has_mcp and (settings.auth_file is not None or settings.user_header is not None):
        faults.append("mcp with a login: Gradio's MCP server asks its own page without one; fix: leave one of them out")
    if settings.promoters and settings.user_header is None:
        faults.append("promoters without a user header; fix: an auth file's users get it by users add --may-promote")
    for address in settings.trusted_proxies:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            faults.append(
                f"trusted proxy {address!r}; fix: an IP address or a network, such as 10.0.0.7 or 10.0.0.0/24"
            )
    return faults
