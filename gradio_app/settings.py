"""The settings of a playground: each with its command-line option, its description and its check."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlflow_finetune_plugin.config.durations import seconds_of
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.serving.versions.names import is_loopback

_LARGEST_PORT = 65535
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Option:
    """How a setting is given on the command line.

    Args:
        flag: Such as ``--max-turns``.
        help: What the setting does; the default is added to it where there is one.
        metavar: The word that stands for the value in the help; empty for a switch.
        read: Makes the setting's value from its text. Raises ValueError with the reason and the fix.
        minimum: The smallest number that is valid; None: not a number, or checked elsewhere.
    """

    flag: str
    help: str
    metavar: str
    read: Callable[[str], Any] = str
    minimum: int | None = None


def _endpoint(text: str) -> str:
    return text.rstrip("/")


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _days(text: str) -> float:
    return seconds_of(text) / _DAY_S


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a whole number; fix: use digits only") from error


def _option(flag: str, description: str, metavar: str, read: Callable[[str], Any] = str) -> dict[str, Option]:
    return {"option": Option(flag, description, metavar, read)}


def _switch(flag: str, description: str) -> dict[str, Option]:
    return {"option": Option(flag, description, "")}


def _limit(flag: str, description: str, minimum: int = 1) -> dict[str, Option]:
    return {"option": Option(flag, description, "NUMBER", _integer, minimum)}


@dataclass(frozen=True)
class PlaygroundSettings:
    """What a playground is started with. A field with a tuple as its default is an option that may be repeated."""

    endpoints: tuple[str, ...] = field(
        metadata=_option(
            "--endpoint",
            "an OpenAI-compatible base URL that ends in /v1; repeat it for more endpoints. Models of the first "
            "endpoint keep their names, models of the others carry the name of their host",
            "URL",
            _endpoint,
        )
    )
    model: str | None = field(
        default=None,
        metadata=_option(
            "--model",
            "the registered model whose votes are stored (default: the only registered model that is served)",
            "NAME",
        ),
    )
    project: Path | None = field(
        default=None,
        metadata=_option(
            "--project",
            "the project folder whose finetune.yaml is the recipe of trainings on votes (default: defaults, without a recipe)",
            "FOLDER",
            _path,
        ),
    )
    sides: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "--side",
            "a model to compare, as its endpoint names it; repeat it for two to four sides (default: the challenger "
            "and the champion, or the base)",
            "NAME",
        ),
    )
    host: str = field(
        default="127.0.0.1",
        metadata=_option("--host", "the address to listen on; any address but loopback needs a login", "ADDRESS"),
    )
    port: int = field(
        default=7860, metadata=_option("--port", "the port to listen on; 0 picks a free one", "NUMBER", _integer)
    )
    auth_file: Path | None = field(
        default=None,
        metadata=_option(
            "--auth-file",
            "require a password; FILE lists the users (`mlflow-finetune users add FILE NAME` creates it)",
            "FILE",
            _path,
        ),
    )
    user_header: str | None = field(
        default=None,
        metadata=_option("--user-header", "the HTTP header in which a trusted proxy names the user", "NAME"),
    )
    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "--trusted-proxy",
            "the IP address or network of a proxy to trust; may be repeated (default: this machine)",
            "ADDRESS",
        ),
    )
    promoters: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "--promoter", "a user of --user-header who may promote and roll back; may be repeated", "USER"
        ),
    )
    public_hosts: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "--public-host", "a host name under which a proxy serves the page to browsers; may be repeated", "NAME"
        ),
    )
    prompt_sets: tuple[Path, ...] = field(
        default=(),
        metadata=_option("--prompts", "a JSONL file of prompts to vote on one by one; may be repeated", "FILE", _path),
    )
    live_standings: bool = field(
        default=False,
        metadata=_switch(
            "--live-standings",
            "show the result of a pair of versions before its votes decide it, also to people who still vote on it",
        ),
    )
    keep_traces_days: float | None = field(
        default=None,
        metadata=_option(
            "--keep-traces",
            "delete answers without a vote, and shared links, that are older than this, e.g. 30d (default: keep all)",
            "DURATION",
            _days,
        ),
    )
    max_prompt_chars: int = field(
        default=20_000, metadata=_limit("--max-prompt-chars", "the longest prompt, in characters")
    )
    max_turns: int = field(default=50, metadata=_limit("--max-turns", "the turns in a conversation"))
    max_streams_per_session: int = field(
        default=4,
        metadata=_limit(
            "--max-streams-per-session",
            "the answers that a session may receive at a time, one per side",
            minimum=2,  # A comparison has two sides.
        ),
    )
    max_streams: int = field(
        default=256, metadata=_limit("--max-streams", "the sessions that may receive answers at a time")
    )
    max_waiting: int = field(default=512, metadata=_limit("--max-waiting", "the requests that may wait in the queue"))
    max_body_bytes: int = field(
        default=8_000_000, metadata=_limit("--max-body-bytes", "the largest request body, in bytes")
    )

    max_connections: int = field(
        default=256,
        metadata=_limit(
            "--max-connections",
            "the connections that one address may hold open; loopback has no limit. Raise it if a proxy on another "
            "machine connects for all users",
        ),
    )

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)


def check_settings(settings: PlaygroundSettings) -> None:
    """Check the settings without any network access. Raises ConfigError that lists every fault."""
    faults = _address_faults(settings) + _access_faults(settings)
    for path in settings.prompt_sets:
        if not (path.is_file() and os.access(path, os.R_OK)):
            faults.append(f"--prompts {path} cannot be read; fix: give a JSONL file with one prompt per line")
    if settings.project is not None and not (settings.project / "finetune.yaml").is_file():
        faults.append(
            f"--project {settings.project} has no finetune.yaml; fix: name the folder of a project, or leave it out"
        )
    if settings.keep_traces_days is not None and settings.keep_traces_days <= 0:
        faults.append(f"--keep-traces of {settings.keep_traces_days} days; fix: use more than 0, or leave it out")
    for setting in fields(settings):
        option, value = setting.metadata["option"], getattr(settings, setting.name)
        if option.minimum is not None and value < option.minimum:
            faults.append(f"{option.flag} {value} is too small; fix: use a number from {option.minimum}")
    if faults:
        raise ConfigError(faults)


def _address_faults(settings: PlaygroundSettings) -> list[str]:
    faults = []
    if not settings.endpoints:
        faults.append("no endpoint was given; fix: --endpoint http://127.0.0.1:8000/v1")
    for endpoint in settings.endpoints:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            url = f"{parts.scheme}://{parts.hostname}{parts.path}" if parts.hostname else endpoint[:100]
            faults.append(
                f"--endpoint {url} is not a valid endpoint; fix: use http://HOST:PORT/v1, without user and password"
            )
    if not 0 <= settings.port <= _LARGEST_PORT:
        faults.append(f"--port {settings.port} is not a valid port; fix: use a number from 0 to {_LARGEST_PORT}")
    return faults


def _access_faults(settings: PlaygroundSettings) -> list[str]:
    faults = []
    if settings.auth_file is not None and settings.user_header is not None:
        faults.append("--auth-file and --user-header cannot be combined; fix: keep the one that identifies users")
    if settings.auth_file is None and settings.user_header is None and not settings.is_loopback:
        faults.append(
            f"--host {settings.host}: without a login only this machine may open the page; fix: --auth-file FILE "
            "(mlflow-finetune users add FILE NAME creates it), --user-header NAME behind a proxy, or --host 127.0.0.1"
        )
    if settings.user_header is not None and not settings.user_header.replace("-", "").isalnum():
        faults.append(
            f"--user-header {settings.user_header!r} is not a header name; fix: use a name such as X-Forwarded-User"
        )
    if settings.promoters and settings.user_header is None:
        faults.append(
            "--promoter needs --user-header; fix: with an auth file, let a user promote by "
            "`mlflow-finetune users add FILE NAME --may-promote`"
        )
    for address in settings.trusted_proxies:
        try:
            ipaddress.ip_network(address, strict=False)
        except ValueError:
            faults.append(
                f"--trusted-proxy {address!r} is not an address; fix: use an IP address or a network, such as "
                "10.0.0.7 or 10.0.0.0/24"
            )
    return faults
