"""API keys: named, stored as hashes, each with a rate of its own; the file is read again when it changes.

keys:
- name: alice
sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
requests_per_minute: 60      # optional
expires: 2027-01-31          # optional, the last day
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

_PREFIX = "mf-"


@dataclass(frozen=True)
class Key:
    name: str
    sha256: str
    requests_per_minute: float | None
    expires: date | None


class Keys:
    """A key file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()
        self._buckets: dict[str, _Bucket] = {}
        self.fault: str | None = None
        self._read()
        if self.fault is not None:
            raise ConfigError([self.fault])

    def find(self, given: str | None) -> Key | None:
        """The key behind ``Authorization: Bearer GIVEN``; None for none, an unknown one, or one that is past its last day."""
        self._read()
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogateescape")).hexdigest()
        found = None
        for key in self._keys:  # all of them, so that the time tells nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key
        if found is None or (found.expires is not None and datetime.now(UTC).date() > found.expires):
            return None
        return found

    def wait_s(self, key: Key) -> float:
        """0 when this request may pass, and then it counts; else the seconds until one may."""
        if key.requests_per_minute is None:
            return 0.0
        bucket = self._buckets.setdefault(key.name, _Bucket(key.requests_per_minute, time.monotonic()))
        return bucket.take(key.requests_per_minute, time.monotonic())

    def _read(self) -> None:
        """Last known good: a file that cannot be understood changes nothing; ``fault`` says why, and so does the log, once."""
        before = self.fault
        try:
            stat = self._path.stat()
            if self._seen == (stat.st_mtime_ns, stat.st_size):
                return
            self._keys = _parse(self._path)
            self._seen, self.fault = (stat.st_mtime_ns, stat.st_size), None
        except OSError as error:
            self.fault = f"{self._path}: cannot be read: {error.strerror}"
        except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            self.fault = f"{self._path}: is no key file: {' '.join(str(error).split())}; fix: mlflow-finetune keys add {self._path} NAME"
        if self.fault is not None and self.fault != before:
            logger.error("keys_not_read fault=%s", self.fault)


def add_key(path: Path, name: str) -> str:
    """Writes a new key's hash to the file and returns the key, which is nowhere else. Raises ConfigError for a name that is there."""
    keys = _parse(path) if path.exists() else ()
    if any(key.name == name for key in keys):
        raise ConfigError([f"{path}: has a key named {name!r}; fix: another name, or take that entry out"])
    made = _PREFIX + secrets.token_urlsafe(32)
    entry = f"  - name: {json.dumps(name)}\n    sha256: {hashlib.sha256(made.encode()).hexdigest()}\n"
    before = path.read_text(encoding="utf-8") if keys else "keys:\n"
    path.touch(mode=0o600)
    path.write_text(before if before.endswith("\n") else before + "\n", encoding="utf-8")
    with path.open("a", encoding="utf-8") as file:
        file.write(entry)
    return made


def _parse(path: Path) -> tuple[Key, ...]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ValueError("it has no list `keys`")
    keys = tuple(_key(entry) for entry in entries)
    if len({key.name for key in keys}) != len(keys):
        raise ValueError("two keys have the same name")
    return keys


def _key(entry: Any) -> Key:
    if not isinstance(entry, dict) or not entry.keys() <= {"name", "sha256", "requests_per_minute", "expires"}:
        raise ValueError(f"an entry has name, sha256, requests_per_minute and expires; found {entry!r:.80}")
    digest, rate, expires = str(entry["sha256"]).lower(), entry.get("requests_per_minute"), entry.get("expires")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"sha256 of {entry['name']!r} is not 64 hexadecimal digits")
    if rate is not None and not (isinstance(rate, int | float) and rate > 0):
        raise ValueError(f"requests_per_minute of {entry['name']!r} is not a positive number")
    if expires is not None and not isinstance(expires, date):
        raise ValueError(f"expires of {entry['name']!r} is no date (2027-01-31)")
    return Key(str(entry["name"]), digest, None if rate is None else float(rate), expires)


class _Bucket:
    """Up to a minute's requests at once, then as fast as the rate."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._left, self._at = per_minute, now

    def take(self, per_minute: float, now: float) -> float:
        self._left = min(per_minute, self._left + (now - self._at) * per_minute / 60)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) * 60 / per_minute
