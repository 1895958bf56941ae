"""Read a YAML file of credentials, and read it again when it changes."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import yaml

from mlflow_finetune_plugin.errors import ConfigError

logger = logging.getLogger(__name__)

_LONGEST_REASON = 300


class Named(Protocol):
    """An entry of a credential file."""

    @property
    def name(self) -> str: ...


Entry = TypeVar("Entry", bound=Named)


@dataclass(frozen=True)
class FileFormat(Generic[Entry]):
    """What one kind of credential file holds.

    Attributes:
        title: The kind of file in messages, with its article, e.g. "an API key file".
        list_name: The file's top-level key, which holds the list of entries.
        add_command: The command that creates the file and adds an entry.
        parse_entry: Turns one YAML entry into a value; raises ValueError with the reason.
        may_be_empty: True accepts a list without entries.
        is_private: True refuses a file that anyone but its owner may read or write.
    """

    title: str
    list_name: str
    add_command: str
    parse_entry: Callable[[Any], Entry]
    may_be_empty: bool = False
    is_private: bool = False

    def parse(self, text: str) -> tuple[Entry, ...]:
        """Return the entries of a file's text. Raises ValueError with the reason, yaml.YAMLError."""
        content = yaml.safe_load(text)
        entries = content.get(self.list_name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not (entries or self.may_be_empty):
            raise ValueError(f"it has no list `{self.list_name}`")
        parsed = tuple(self.parse_entry(entry) for entry in entries)
        if len({entry.name for entry in parsed}) != len(parsed):
            raise ValueError(f"two {self.list_name} have the same name")
        return parsed

    def parse_file(self, path: Path, text: str) -> tuple[Entry, ...]:
        """Return the entries of the text that ``path`` holds. Raises ConfigError."""
        try:
            return self.parse(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError([self._invalid(path, error)]) from error

    def read_text(self, path: Path) -> str:
        """Return the file's text. Raises ConfigError when it cannot be read, or when others may read a private file."""
        try:
            text = path.read_text(encoding="utf-8")
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            raise ConfigError([self.unreachable(path, error)]) from error
        except UnicodeDecodeError as error:
            raise ConfigError([self._invalid(path, error)]) from error
        if self.is_private and mode & 0o077:
            raise ConfigError([f"{path}: users other than its owner have access ({mode:04o}); fix: chmod 600 {path}"])
        return text

    def read(self, path: Path) -> tuple[Entry, ...]:
        """Return the entries of a file. Raises ConfigError."""
        return self.parse_file(path, self.read_text(path))

    def unreachable(self, path: Path, error: OSError) -> str:
        """Return the message for a file that cannot be read or written."""
        if not isinstance(error, FileNotFoundError):
            fix = "use a file that this user may read and write"
        elif path.parent.is_dir():
            fix = f"create it with {self.add_command} {path} NAME"
        else:
            fix = f"create the folder {path.parent}"
        return f"{path}: cannot be read or written: {error.strerror}; fix: {fix}"

    def _invalid(self, path: Path, error: Exception) -> str:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        return (
            f"{path}: not {self.title}: {reason}; fix: correct or remove what is wrong, "
            f"or create another file with {self.add_command}"
        )


class CredentialFile(Generic[Entry]):
    """The entries of a file, always current.

    While the file cannot be read, the last entries that could be read stay valid, ``fault`` holds the reason, and the log
    reports it once. Raises ConfigError when the file cannot be read at the start.
    """

    def __init__(self, path: Path, file_format: FileFormat[Entry]) -> None:
        self._path, self._format = path, file_format
        self._version = self._file_version()  # before the text: a change in between is then read at the next call
        self._entries = file_format.read(path)
        self.fault: str | None = None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries, read again if the file has changed."""
        try:
            version = self._file_version()
            if version != self._version:
                self._entries = self._format.read(self._path)
                self._version = version
            fault = None
        except ConfigError as error:
            fault = error.problems[0]
        if fault is not None and fault != self.fault:
            logger.error("%s_not_read fault=%s", self._format.list_name, fault)
        self.fault = fault
        return self._entries

    def _file_version(self) -> tuple[int, int, int]:
        """Return a value that differs after every write. Raises ConfigError."""
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError([self._format.unreachable(self._path, error)]) from error
        return status.st_mtime_ns, status.st_size, status.st_ino
