"""API keys: named, stored as hashes, each with a rate of its own; the file is read again when it changes.

keys:
  - name: alice
    sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    requests_per_minute: 60      # optional
    expires: 2027-01-31          # optional, the last day, in UTC
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
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
        self._buckets: dict[str, _Bucket] = {}
        self._seen, self._keys = _read_file(path)
        self.fault: str | None = None

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
        try:
            if _version(self._path) == self._seen:
                self.fault = None
                return
            self._seen, self._keys = _read_file(self._path)
        except OSError as error:
            self._tell(_unreachable(self._path, error))
        except ConfigError as error:
            self._tell(error.problems[0])
        else:
            self.fault = None

    def _tell(self, fault: str) -> None:
        if fault != self.fault:
            logger.error("keys_not_read fault=%s", fault)
        self.fault = fault


def add_key(path: Path, name: str, *, requests_per_minute: int | None = None, expires: date | None = None) -> str:
    """Writes a new key's hash to the file and returns the key, which is nowhere else. ``expires``: the last day, in UTC.

    Raises ConfigError for a name that is there, limits that are none, and a file that is no key file or cannot be written.
    """
    _check_limits(requests_per_minute, expires)
    before = _text(path) if os.path.lexists(path) else None
    if before is not None and any(key.name == name for key in _parse_or_refuse(path, before)):
        raise ConfigError([f"{path}: has a key named {name!r}; fix: another name, or take that entry out"])
    made = _PREFIX + secrets.token_urlsafe(32)
    lines = [
        f"  - name: {json.dumps(name, ensure_ascii=False)}",
        f"    sha256: {hashlib.sha256(made.encode()).hexdigest()}",
    ]
    lines += [f"    requests_per_minute: {requests_per_minute}"] if requests_per_minute is not None else []
    lines += [f"    expires: {expires.isoformat()}"] if expires is not None else []
    after = "\n".join([(before or "keys:").removesuffix("\n"), *lines, ""])
    _check_end(path, after, name)
    try:
        path.touch(mode=0o600)
        path.write_text(after, encoding="utf-8")
    except OSError as error:
        raise ConfigError([_unreachable(path, error)]) from error
    return made


def _check_end(path: Path, after: str, name: str) -> None:
    """Refuses a file that is good, and written so that an entry at its end would be none of its keys."""
    fault = f"{path}: takes no entry at its end; fix: `keys` last in it, each entry indented by two spaces"
    try:
        keys = _parse(after)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError([fault]) from error
    if all(key.name != name for key in keys):
        raise ConfigError([fault])


def _check_limits(requests_per_minute: int | None, expires: date | None) -> None:
    faults = []
    if requests_per_minute is not None and requests_per_minute < 1:
        faults.append(f"requests per minute {requests_per_minute}; fix: a number from 1")
    if expires is not None and expires < datetime.now(UTC).date():
        faults.append(f"expires {expires}: is past; fix: the last day that the key is good for")
    if faults:
        raise ConfigError(faults)


def _version(path: Path) -> tuple[int, int]:
    """What differs once the file is written again."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


def _read_file(path: Path) -> tuple[tuple[int, int], tuple[Key, ...]]:
    """Its version, and its keys. Raises ConfigError."""
    try:
        version = _version(path)
    except OSError as error:
        raise ConfigError([_unreachable(path, error)]) from error
    return version, _parse_or_refuse(path, _text(path))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([_unreachable(path, error)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([_not_a_key_file(path, error)]) from error


def _unreachable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        fix = (
            f"mlflow-finetune keys add {path} NAME makes it"
            if path.parent.is_dir()
            else f"make {path.parent}, a folder"
        )
    else:
        fix = "a file that this user may read and write"
    return f"{path}: cannot be read or written: {error.strerror}; fix: {fix}"


def _not_a_key_file(path: Path, error: Exception) -> str:
    return (
        f"{path}: is no key file: {' '.join(str(error).split())}; "
        "fix: correct or take out what is wrong; a file that is away, keys add makes"
    )


def _parse_or_refuse(path: Path, text: str) -> tuple[Key, ...]:
    try:
        return _parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError([_not_a_key_file(path, error)]) from error


def _parse(text: str) -> tuple[Key, ...]:
    content = yaml.safe_load(text)
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
    missing = [field for field in ("name", "sha256") if field not in entry]
    if missing:
        raise ValueError(f"an entry has no {missing[0]}; found {entry!r:.80}")
    digest, rate, expires = str(entry["sha256"]).lower(), entry.get("requests_per_minute"), entry.get("expires")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"sha256 of {entry['name']!r} is not 64 hexadecimal digits")
    if rate is not None and not (type(rate) in (int, float) and 0 < rate < math.inf):
        raise ValueError(f"requests_per_minute of {entry['name']!r} is not a positive number")
    if expires is not None and type(expires) is not date:  # a time of day is one too, and no day
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
