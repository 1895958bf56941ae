"""API keys of a router. A file holds their names, hashes and limits; the router reads it again when it changes.

keys:
  - name: alice
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    requests_per_minute: 60      # optional
    concurrent_requests: 8       # optional, requests that are answered at once
    expires: 2027-01-31          # optional, the last day, in UTC
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import os
import secrets
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.credentials.file import CredentialFile, FileFormat
from mlflow_finetune_plugin.errors import ConfigError

_PREFIX = "mf-"
_NO_KEY = hashlib.sha256(b"").hexdigest()
_FIELDS = ("name", "sha256", "requests_per_minute", "concurrent_requests", "expires")


@dataclass(frozen=True)
class Key:
    """An API key: its hash and its limits. None means no limit; ``expires`` is the last valid day, in UTC."""

    name: str
    sha256: str
    requests_per_minute: float | None
    expires: date | None
    concurrent_requests: int | None = None


class Keys:
    """The API keys of a file. Raises ConfigError when the file cannot be read at the start."""

    def __init__(self, path: Path) -> None:
        self._file = CredentialFile(path, _FORMAT)
        self._buckets: dict[str, _Bucket] = {}
        self._running: Counter[str] = Counter()

    @property
    def fault(self) -> str | None:
        """Why the file could not be read last time; None when it could."""
        return self._file.fault

    def find(self, api_key: str | None) -> Key | None:
        """Return the entry of an API key; None for no key, an unknown key or one past its last day."""
        if not api_key:
            return None
        digest = hashlib.sha256(api_key.encode("utf-8", "surrogateescape")).hexdigest()
        match = None
        for key in self._file.entries:  # compares with all keys, so that the time does not show which one matched
            if hmac.compare_digest(key.sha256, digest):
                match = key
        return match if match is not None and _is_valid(match) else None

    @property
    def has_several(self) -> bool:
        """Whether more than one key is valid now."""
        return sum(map(_is_valid, self._file.entries)) > 1

    def wait_s(self, key: Key) -> float:
        """Count a request of this key. Returns 0 if it may pass, else the seconds until the next one may."""
        if key.requests_per_minute is None:
            return 0.0
        bucket = self._buckets.setdefault(key.name, _Bucket(key.requests_per_minute, time.monotonic()))
        return bucket.take(key.requests_per_minute, time.monotonic())

    def begin(self, key: Key) -> bool:
        """Begin a request of this key; ``end`` must follow. Returns False, and begins nothing, if too many are running."""
        if key.concurrent_requests is not None and self._running[key.name] >= key.concurrent_requests:
            return False
        self._running[key.name] += 1
        return True

    def end(self, key: Key) -> None:
        """End a request that has begun."""
        self._running[key.name] -= 1
        if not self._running[key.name]:
            del self._running[key.name]


def _is_valid(key: Key) -> bool:
    return key.expires is None or datetime.now(UTC).date() <= key.expires


def add_key(
    path: Path,
    name: str,
    *,
    requests_per_minute: int | None = None,
    concurrent_requests: int | None = None,
    expires: date | None = None,
) -> str:
    """Add a new API key's hash to the file, and return the key. The key is stored nowhere.

    The file keeps its comments.

    Args:
        path: The file; it is created if it does not exist.
        name: The name of the new key, which the router logs.
        requests_per_minute: None allows any number.
        concurrent_requests: Requests that may be answered at once; None allows any number.
        expires: The last day on which the key is valid, in UTC; None means never.

    Raises:
        ConfigError: The name is taken, a limit is not valid, or the file is not a key file or cannot be written.
    """
    _check_limits(requests_per_minute, concurrent_requests, expires)
    before = _FORMAT.read_text(path) if os.path.lexists(path) else None
    if before is not None and any(key.name == name for key in _FORMAT.parse_file(path, before)):
        raise ConfigError([f"{path}: has a key named {name!r}; fix: choose another name, or remove that entry"])
    api_key = _PREFIX + secrets.token_urlsafe(32)
    lines = [
        f"  - name: {json.dumps(name, ensure_ascii=False)}",
        f"    sha256: {hashlib.sha256(api_key.encode()).hexdigest()}",
    ]
    lines += [f"    requests_per_minute: {requests_per_minute}"] if requests_per_minute is not None else []
    lines += [f"    concurrent_requests: {concurrent_requests}"] if concurrent_requests is not None else []
    lines += [f"    expires: {expires.isoformat()}"] if expires is not None else []
    after = "\n".join([(before or "keys:").removesuffix("\n"), *lines, ""])
    _check_appended(path, after, name)
    try:
        path.touch(mode=0o600)
        path.write_text(after, encoding="utf-8")
    except OSError as error:
        raise ConfigError([_FORMAT.unreachable(path, error)]) from error
    return api_key


def _check_appended(path: Path, text: str, name: str) -> None:
    """Raise ConfigError for a file whose layout does not allow an entry at its end."""
    fault = f"{path}: an entry cannot be added at its end; fix: put `keys` last in the file, each entry indented by two spaces"
    try:
        keys = _FORMAT.parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError([fault]) from error
    if all(key.name != name for key in keys):
        raise ConfigError([fault])


def _check_limits(requests_per_minute: int | None, concurrent_requests: int | None, expires: date | None) -> None:
    faults = []
    if concurrent_requests is not None and concurrent_requests < 1:
        faults.append(f"concurrent requests {concurrent_requests}: too small; fix: use a number from 1")
    if requests_per_minute is not None and requests_per_minute < 1:
        faults.append(f"requests per minute {requests_per_minute}: too small; fix: use a number from 1")
    if expires is not None and expires < datetime.now(UTC).date():
        faults.append(f"expires {expires}: in the past; fix: use the last day on which the key is valid")
    if faults:
        raise ConfigError(faults)


def _parse_key(entry: Any) -> Key:
    if not isinstance(entry, dict) or not entry.keys() <= set(_FIELDS):
        raise ValueError(f"an entry may have {', '.join(_FIELDS)}, not {entry!r:.80}")
    missing = [field for field in ("name", "sha256") if field not in entry]
    if missing:
        raise ValueError(f"an entry has no {missing[0]}: {entry!r:.80}")
    digest, rate, expires = str(entry["sha256"]).lower(), entry.get("requests_per_minute"), entry.get("expires")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"sha256 of {entry['name']!r} is not 64 hexadecimal digits")
    if digest == _NO_KEY:
        raise ValueError(f"sha256 of {entry['name']!r} is that of an empty key, which would let every client in")
    if rate is not None and not (type(rate) in (int, float) and 0 < rate < math.inf):
        raise ValueError(f"requests_per_minute of {entry['name']!r} is not a positive number")
    concurrent = entry.get("concurrent_requests")
    if concurrent is not None and not (type(concurrent) is int and concurrent > 0):
        raise ValueError(f"concurrent_requests of {entry['name']!r} is not a whole number from 1")
    if expires is not None and type(expires) is not date:  # a datetime is a date too, but not a day
        raise ValueError(f"expires of {entry['name']!r} is not a date such as 2027-01-31")
    return Key(str(entry["name"]), digest, None if rate is None else float(rate), expires, concurrent)


_FORMAT = FileFormat("an API key file", "keys", "mlflow-finetune keys add", _parse_key)


class _Bucket:
    """A token bucket: up to a minute's requests at once, but at least one, then as fast as the rate."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._left, self._at = max(1.0, per_minute), now

    def take(self, per_minute: float, now: float) -> float:
        self._left = min(max(1.0, per_minute), self._left + (now - self._at) * per_minute / 60)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) * 60 / per_minute
