"""Who may open the playground: names with hashed passwords in a file, read again when it changes.

users:
  - name: alice
    password: scrypt$32768$8$1$SALT$HASH     # n, r, p; salt and hash in hexadecimal digits
    may_promote: true                        # optional
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mlflow_finetune_plugin.durable_files import write_whole
from mlflow_finetune_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

MIN_PASSWORD_CHARS = 8
MAX_PASSWORD_CHARS = 1000
MAX_NAME_CHARS = 100
_N, _R, _P = 2**15, 8, 1  # 32 MB and about 0.1 s a guess, as OWASP asks for
_LENGTH = 32
_HEXADECIMAL = re.compile(r"(?:[0-9a-f]{2})+")
_HEAD = "# made by `mlflow-finetune users`, which keeps no comments\n"


@dataclass(frozen=True)
class PasswordHash:
    """``memory`` is 128 n r bytes."""

    n: int
    r: int
    p: int
    salt: bytes
    digest: bytes

    @classmethod
    def of(cls, password: str) -> PasswordHash:
        salt = secrets.token_bytes(16)
        return cls(_N, _R, _P, salt, _scrypt(password, salt, _N, _R, _P))

    def matches(self, password: str) -> bool:
        """Takes about 0.1 s of a core, on purpose."""
        return hmac.compare_digest(self.digest, _scrypt(password, self.salt, self.n, self.r, self.p))

    def __str__(self) -> str:
        return f"scrypt${self.n}${self.r}${self.p}${self.salt.hex()}${self.digest.hex()}"

    def __repr__(self) -> str:
        return "PasswordHash(...)"


@dataclass(frozen=True)
class User:
    name: str
    password: PasswordHash
    may_promote: bool = False


NOBODY = PasswordHash(_N, _R, _P, bytes(16), bytes(_LENGTH))
"""No password's: what an unknown name is compared with, so that the time tells nothing."""


class Users:
    """A file of users. Last known good: a file that cannot be understood changes nothing, and ``fault`` says why."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen, self._users = _version(path), _by_name(read_users(path))
        self.fault: str | None = None

    def find(self, name: str) -> User | None:
        self._read()
        return self._users.get(name)

    def with_password(self, name: str, password: str) -> User | None:
        """The user, when that is the password. As slow for a name that nobody has."""
        user = self.find(name)
        known = user.password if user is not None else NOBODY
        is_right = known.matches(password[: MAX_PASSWORD_CHARS + 1])
        return user if is_right else None

    def _read(self) -> None:
        try:
            version = _version(self._path)
            if version != self._seen:
                self._users = _by_name(read_users(self._path))
                self._seen = version
            fault = None
        except ConfigError as error:
            fault = error.problems[0]
        if fault is not None and fault != self.fault:
            logger.error("users_not_read fault=%s", fault)
        self.fault = fault


def add_user(path: Path, name: str, password: str, *, may_promote: bool = False) -> None:
    """Writes the password's hash to the file, which is made where it is not. Raises ConfigError."""
    faults = [fault for fault in (name_fault(name), _password_fault(password)) if fault is not None]
    if faults:
        raise ConfigError(faults)
    before = read_users(path) if os.path.lexists(path) else ()
    if any(user.name == name for user in before):
        raise ConfigError([f"{path}: has a user named {name!r}; fix: users remove first, or another name"])
    _write(path, (*before, User(name, PasswordHash.of(password), may_promote)))


def remove_user(path: Path, name: str) -> None:
    """A playground that runs shuts the user out at its next request. Raises ConfigError."""
    before = read_users(path)
    after = tuple(user for user in before if user.name != name)
    if len(after) == len(before):
        names = ", ".join(user.name for user in before) or "none"
        raise ConfigError([f"{path}: has no user named {name!r}; fix: one of its names: {names}"])
    _write(path, after)


def read_users(path: Path) -> tuple[User, ...]:
    """Raises ConfigError, also for a file that others than its owner may read."""
    try:
        text = path.read_text(encoding="utf-8")
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError([_unreachable(path, error)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([_no_user_file(path, error)]) from error
    if mode & 0o077:
        raise ConfigError([f"{path}: others than its owner may read or write it ({mode:04o}); fix: chmod 600 {path}"])
    try:
        return _parse(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError([_no_user_file(path, error)]) from error


def name_fault(name: str) -> str | None:
    """Why that is no name of a user; None when it is one."""
    if not name or len(name) > MAX_NAME_CHARS or name != name.strip() or not name.isprintable():
        return f"user name {name[:100]!r}; fix: 1 to {MAX_NAME_CHARS} printable characters, no space at an end"
    return None


def _password_fault(password: str) -> str | None:
    if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
        return f"a password of {len(password)} characters; fix: {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS}"
    return None


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    given = password.encode("utf-8", "surrogateescape")
    return hashlib.scrypt(given, salt=salt, n=n, r=r, p=p, maxmem=256 * n * r, dklen=_LENGTH)


def _write(path: Path, users: tuple[User, ...]) -> None:
    entries = []
    for user in users:
        entry: dict[str, Any] = {"name": user.name, "password": str(user.password)}
        entries.append({**entry, "may_promote": True} if user.may_promote else entry)
    text = _HEAD + yaml.safe_dump({"users": entries}, sort_keys=False, allow_unicode=True, width=1000)
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise ConfigError([_unreachable(path, error)]) from error


def _version(path: Path) -> tuple[int, int, int]:
    """What differs once the file is written again. Raises ConfigError."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError([_unreachable(path, error)]) from error
    return found.st_mtime_ns, found.st_size, found.st_ino


def _by_name(users: tuple[User, ...]) -> dict[str, User]:
    return {user.name: user for user in users}


def _unreachable(path: Path, error: OSError) -> str:
    if not isinstance(error, FileNotFoundError):
        fix = "a file that this user may read and write"
    elif path.parent.is_dir():
        fix = f"mlflow-finetune users add {path} NAME makes it"
    else:
        fix = f"make {path.parent}, a folder"
    return f"{path}: cannot be read or written: {error.strerror}; fix: {fix}"


def _no_user_file(path: Path, error: Exception) -> str:
    told = " ".join(str(error).split())[:300]
    return f"{path}: is no file of users: {told}; fix: correct it, or make a new one with mlflow-finetune users add"


def _parse(text: str) -> tuple[User, ...]:
    content = yaml.safe_load(text)
    entries = content.get("users") if isinstance(content, dict) else None
    if not isinstance(entries, list):  # an empty one is good: the last user was taken out
        raise ValueError("it has no list `users`")
    users = tuple(_user(entry) for entry in entries)
    if len({user.name for user in users}) != len(users):
        raise ValueError("two users have the same name")
    return users


def _user(entry: Any) -> User:
    if not isinstance(entry, dict) or not entry.keys() <= {"name", "password", "may_promote"}:
        raise ValueError("an entry has name, password and may_promote, and nothing else")
    name, may_promote = entry.get("name"), entry.get("may_promote", False)
    if not isinstance(name, str) or (fault := name_fault(name)):
        raise ValueError(f"a name is text: {name!r:.80}" if not isinstance(name, str) else fault)
    if type(may_promote) is not bool:
        raise ValueError(f"may_promote of {name!r} is neither true nor false")
    return User(name, _hash(name, entry.get("password")), may_promote)


def _hash(name: str, written: Any) -> PasswordHash:
    parts = written.split("$") if isinstance(written, str) else []
    if len(parts) != 6 or parts[0] != "scrypt" or not all(part.isdecimal() and len(part) < 9 for part in parts[1:4]):
        raise ValueError(f"password of {name!r} is no hash (scrypt$n$r$p$salt$hash)")
    n, r, p = (int(part) for part in parts[1:4])
    if n not in {2**power for power in range(14, 19)} or not 8 <= r <= 16 or not 1 <= p <= 8:
        raise ValueError(f"password of {name!r}: n is 2^14 to 2^18, r 8 to 16, p 1 to 8")
    salt, digest = parts[4:]
    if not (_HEXADECIMAL.fullmatch(salt) and _HEXADECIMAL.fullmatch(digest)) or len(salt) < 32 or len(digest) != 64:
        raise ValueError(f"password of {name!r}: salt and hash are hexadecimal digits, at least 32 and 64 of them")
    return PasswordHash(n, r, p, bytes.fromhex(salt), bytes.fromhex(digest))
