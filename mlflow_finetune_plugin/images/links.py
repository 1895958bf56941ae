"""Fetch pictures over HTTPS from hosts that the user allowed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from mlflow_finetune_plugin.images.picture import TOO_LARGE, PictureFault, PictureLimits

LINK = "picture behind a link"

_ATTEMPTS = 3
_PAUSE_S = 1.0
_TIMEOUT_S = 30.0
_MOST_REDIRECTS = 3
_SHOWN_CHARS = 60


class PictureLinks:
    """Fetches pictures from ``hosts`` only, also where one of them redirects to another host."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        """Fetch nothing yet.

        Args:
            hosts: Names of hosts, each with ``:port`` where the port is not 443. None means that nothing is fetched.
        """
        self._hosts = frozenset(host.lower() for host in hosts)

    def fetch(self, url: str, limits: PictureLimits) -> bytes:
        """Return the bytes behind a link. A host that cannot be reached, or answers 429 or 5xx, is asked three times.

        Raises:
            PictureFault: the host is not allowed, does not send the picture, or sends more than ``limits.max_bytes``.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._fetch(url, limits)
            except httpx.HTTPError as error:
                is_final = isinstance(error, httpx.HTTPStatusError) and not _is_passing(error.response.status_code)
                if is_final or attempt == _ATTEMPTS:
                    raise PictureFault(LINK, f"{_excerpt(url)}: {_reason(error)}") from error
                time.sleep(_PAUSE_S * attempt)
        raise AssertionError("unreachable")

    def _fetch(self, url: str, limits: PictureLimits) -> bytes:
        with httpx.Client(timeout=_TIMEOUT_S) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                self._check(url)
                with client.stream(
                    "GET", url, headers={"Accept": "image/*", "Accept-Encoding": "identity"}
                ) as response:
                    if response.next_request is not None:
                        url = str(response.next_request.url)
                        continue
                    response.raise_for_status()
                    return _content(response, url, limits)
        raise PictureFault(LINK, f"{_excerpt(url)}: more than {_MOST_REDIRECTS} redirects")

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port or 443
        except ValueError as error:
            raise PictureFault(LINK, f"{_excerpt(url)}: {error}") from error
        if not self._hosts:
            raise PictureFault(
                LINK,
                f"{_excerpt(url)}: nothing is fetched from the network; fix: save the picture and write its path, or allow its "
                "host in data.picture_hosts",
            )
        if parts.scheme.lower() != "https":
            raise PictureFault(
                LINK, f"{_excerpt(url)}: only https is fetched; fix: save the picture and write its path"
            )
        if f"{host}:{port}" not in self._hosts and not (port == 443 and host in self._hosts):
            raise PictureFault(LINK, f"{_excerpt(url)}: data.picture_hosts does not allow this host")


def _content(response: httpx.Response, url: str, limits: PictureLimits) -> bytes:
    """Return the body. The time limit is for all of it, because a slow server could send single bytes without end."""
    end = time.monotonic() + 2 * _TIMEOUT_S
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > limits.max_bytes:
            raise PictureFault(TOO_LARGE, f"{_excerpt(url)}: over {limits.max_bytes:,} bytes")
        if time.monotonic() > end:
            raise httpx.ReadTimeout(f"not sent within {2 * _TIMEOUT_S:.0f} s", request=response.request)
        parts.append(part)
    return b"".join(parts)


def _is_passing(status: int) -> bool:
    return status == 429 or status >= 500


def _reason(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"the host answered {error.response.status_code}"
    return f"{type(error).__name__}: {error}"


def _excerpt(url: str) -> str:
    """Return a link without its query, which can hold a signature."""
    text = url.partition("?")[0]
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
