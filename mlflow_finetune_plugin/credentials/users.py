"""Users of the playground. A file holds their names and hashed passwords; the playground reads it again when it changes.

users:
  - name: alice
    password: scrypt$32768$8$1$SALT$HASH     # n, r, p; salt and hash in hexadecimal digits
    may_promote: true                        # optional
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.credentials.file import CredentialFile, FileFormat
from mlflow_finetune_plugin.durable_files import write_whole
from mlflow_finetune_plugin.errors import ConfigError

MIN_PASSWORD_CHARS = 8
MAX_PASSWORD_CHARS = 1000
MAX_NAME_CHARS = 100
_N, _R, _P = 2**15, 8, 1  # 32 MB and about 0.1 s per guess, as OWASP recommends
_LENGTH = 32
_HEXADECIMAL = re.compile(r"(?:[0-9a-f]{2})+")
_HEAD = "# written by `mlflow-finetune users`, which does not keep comments\n"


@dataclass(frozen=True)
class PasswordHash:
    """A password's scrypt hash. It takes 128 n r bytes of memory to compute."""

    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> PasswordHash:
        """Hash a password with a new random salt."""
        salt = secrets.token_bytes(16)
        return cls(_N, _R, _P, salt, _scrypt(password, salt, _N, _R, _P))

    def matches(self, password: str) -> bool:
        """Compare with a password. Takes about 0.1 s of a core, which makes guessing expensive."""
        return hmac.compare_digest(self.digest, _scrypt(password, self.salt, self.n, self.r, self.p))

    def __str__(self) -> str:
        return f"scrypt${self.n}${self.r}${self.p}${self.salt.hex()}${self.digest.hex()}"

    def __repr__(self) -> str:
        return "PasswordHash(...)"


@dataclass(frozen=True)
class User:
    """A playground user."""

    name: str
    password: PasswordHash
    may_promote: bool = False


UNKNOWN_USER = PasswordHash(_N, _R, _P, bytes(16), bytes(_LENGTH))
"""A hash that no password has. The login of an unknown name is compared with it, so that it takes as long as any other."""


class Users:
    """The users of a file. Raises ConfigError when the file cannot be read at the start."""

    def __init__(self, path: Path) -> None:
        self._file = CredentialFile(path, _FORMAT)

    @property
    def fault(self) -> str | None:
        """Why the file could not be read last time; None when it could."""
        return self._file.fault

    def find(self, name: str) -> User | None:
        return next((user for user in self._file.entries if user.name == name), None)

    def with_password(self, name: str, password: str) -> User | None:
        """Return the user if the password is right. Takes as long for an unknown name as for a known one."""
        user = self.find(name)
        expected = user.password if user is not None else UNKNOWN_USER
        is_right = expected.matches(password[: MAX_PASSWORD_CHARS + 1])
        return user if is_right else None


def add_user(path: Path, name: str, password: str, *, may_promote: bool = False) -> None:
    """Add a user, with the password's hash, to the file, which is created if it does not exist. Raises ConfigError."""
    faults = [fault for fault in (name_fault(name), _password_fault(password)) if fault is not None]
    if faults:
        raise ConfigError(faults)
    before = read_users(path) if os.path.lexists(path) else ()
    if any(user.name == name for user in before):
        raise ConfigError([f"{path}: has a user named {name!r}; fix: remove that user first, or choose another name"])
    _write(path, (*before, User(name, PasswordHash.of(password), may_promote)))


def remove_user(path: Path, name: str) -> None:
    """Remove a user from the file. A running playground refuses the user's next request. Raises ConfigError."""
    before = read_users(path)
    after = tuple(user for user in before if user.name != name)
    if len(after) == len(before):
        names = ", ".join(user.name for user in before) or "none"
        raise ConfigError([f"{path}: has no user named {name!r}; fix: use one of its names: {names}"])
    _write(path, after)


def read_users(path: Path) -> tuple[User, ...]:
    """Return the users of a file. Raises ConfigError, also for a file that others than its owner may read."""
    return _FORMAT.read(path)


def name_fault(name: str) -> str | None:
    """Return why a text cannot be a user's name; None when it can."""
    if not name or len(name) > MAX_NAME_CHARS or name != name.strip() or not name.isprintable():
        return (
            f"user name {name[:100]!r}: not valid; "
            f"fix: use 1 to {MAX_NAME_CHARS} printable characters, without a space at either end"
        )
    return None


def _password_fault(password: str) -> str | None:
    if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
        return f"a password of {len(password)} characters; fix: use {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS} characters"
    return None


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    content = password.encode("utf-8", "surrogateescape")
    return hashlib.scrypt(content, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=_LENGTH)


def _write(path: Path, users: tuple[User, ...]) -> None:
    entries = []
    for user in users:
        entry: dict[str, Any] = {"name": user.name, "password": str(user.password)}
        entries.append({**entry, "may_promote": True} if user.may_promote else entry)
    text = _HEAD + yaml.safe_dump({"users": entries}, sort_keys=False, allow_unicode=True, width=1000)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError([_FORMAT.unreachable(path, error)]) from error


def _parse_user(entry: Any) -> User:
    if not isinstance(entry, dict) or not entry.keys() <= {"name", "password", "may_promote"}:
        raise ValueError("an entry may have name, password and may_promote, and no other field")
    name, may_promote = entry.get("name"), entry.get("may_promote", False)
    if not isinstance(name, str):
        raise ValueError(f"a name must be text, not {name!r:.80}")
    if fault := name_fault(name):
        raise ValueError(fault)
    if type(may_promote) is not bool:
        raise ValueError(f"may_promote of {name!r} is neither true nor false")
    return User(name, _parse_hash(name, entry.get("password")), may_promote)


def _parse_hash(name: str, text: Any) -> PasswordHash:
    parts = text.split("$") if isinstance(text, str) else []
    if len(parts) != 6 or parts[0] != "scrypt" or not all(part.isdecimal() and len(part) < 9 for part in parts[1:4]):
        raise ValueError(f"password of {name!r} is not a hash of the form scrypt$n$r$p$salt$hash")
    n, r, p = (int(part) for part in parts[1:4])
    if n not in {2**power for power in range(14, 19)} or not 8 <= r <= 16 or not 1 <= p <= 8:
        raise ValueError(f"password of {name!r}: n must be 2^14 to 2^18, r 8 to 16, p 1 to 8")
    salt, digest = parts[4:]
    if not (_HEXADECIMAL.fullmatch(salt) and _HEXADECIMAL.fullmatch(digest)) or len(salt) < 32 or len(digest) != 64:
        raise ValueError(f"password of {name!r}: salt and hash must be hexadecimal digits, at least 32 and exactly 64")
    return PasswordHash(n, r, p, bytes.fromhex(salt), bytes.fromhex(digest))


_FORMAT = FileFormat(
    "a user file", "users", "mlflow-finetune users add", _parse_user, may_be_empty=True, is_private=True
)
