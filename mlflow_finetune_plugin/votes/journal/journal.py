"""The vote journal of one model: an append-only file with checksums. A vote is on disk before it is acknowledged.

The folder of a journal holds:

``votes.jsonl``     one line per vote: its sequence, the sequence of its first revision, the vote, and their SHA-256
``torn.bin``        unfinished lines that a crash left; their votes were never acknowledged
``mirrored.json``   per tracking server, the sequence up to which the server has the votes
``set_aside.jsonl`` votes that a tracking server refuses, with its reason; they stay in votes.jsonl
``forgotten.jsonl`` what was forgotten, as keyed digests, for processes that hold turns in memory (see ``tombstones``)
``salt``            32 random bytes for the hashes of the voters; never leaves this folder, mode 0600
``id``              the id of this journal among those of several hosts

Several processes of one host may cast votes at the same time. To make one person the same voter on several hosts, copy
``salt`` (not ``id``) before the first vote.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow_finetune_plugin.durable_files import append_synced, sync, write_whole
from mlflow_finetune_plugin.errors import JournalError
from mlflow_finetune_plugin.jobs.folder import jobs_home
from mlflow_finetune_plugin.votes.journal.lines import Entry, Forgotten, parse_line, written_line
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote

logger = logging.getLogger(__name__)


def journal_folder(model: str) -> Path:
    """Return the folder of this user's journal of a model; it may not exist yet."""
    return jobs_home() / "votes" / quote(model, safe="").replace(".", "%2E")


class Journal:
    """The journal of a model's votes; creating the object opens the journal or creates it.

    Args:
        model: The registered model.
        folder: The journal's folder; None: the one of this user.

    Raises:
        JournalError: The folder cannot be read or written.
    """

    def __init__(self, model: str, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder or journal_folder(model)
        self._thread_lock = threading.RLock()
        self._file: tuple[int, int] | None = None  # Device and inode of the indexed file.
        self._begin_index()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                self.id = self._read_or_create("id", lambda: secrets.token_hex(8))
                self._salt = bytes.fromhex(self._read_or_create("salt", lambda: secrets.token_hex(32)))
                self._path.touch(mode=0o600)
                sync(self.folder)
                self._catch_up()
        except (OSError, ValueError) as error:
            raise JournalError(
                f"the vote journal {self.folder} cannot be used: {error}; fix: check the disk and the file permissions"
            ) from error

    @property
    def _path(self) -> Path:
        return self.folder / "votes.jsonl"

    def voter(self, login: str | None) -> str:
        """Return the salted hash (HMAC-SHA-256) of a login; ``anonymous`` for a visitor without one."""
        name = (login or "").strip()
        if not name:
            return ANONYMOUS
        return "v-" + self.keyed_digest(name)[:32]

    def keyed_digest(self, text: str) -> str:
        """Return the HMAC-SHA-256 of a text under the salt, so that names cannot be guessed without this folder."""
        return hmac.new(self._salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def cast(self, vote: CastVote) -> Entry:
        """Write a vote to the disk and return its entry.

        The same vote again changes nothing. A changed vote of the same voter on the same turn and pair becomes the next
        revision of the earlier one.

        Raises:
            JournalError: The vote could not be written; it was not cast.
        """
        with self._locked():
            self._catch_up()
            offset = self._votes.get(vote.vote_id)
            if offset is not None:
                entry = self._read_entry(offset)
                if entry.vote.says_the_same(vote):
                    return entry
                vote = replace(vote, revision=entry.vote.revision + 1)
                return self._append(vote, entry.first_sequence)
            return self._append(replace(vote, revision=1), None)

    def find(self, vote_id: str) -> Entry | None:
        """Return the last revision of a vote; None where it is not in this journal."""
        with self._locked():
            self._catch_up()
            offset = self._votes.get(vote_id)
            return None if offset is None else self._read_entry(offset)

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Yield the votes and changes with a sequence above ``after``, in order; forgotten and damaged lines are skipped."""
        with self._locked():
            self._catch_up()
            start = bisect_right(self._sequences, after)
            if start == len(self._sequences):
                return
            file = self._path.open("rb")
            file.seek(self._offsets[start])
            end = self._offset
        with file:
            while file.tell() < end:
                line = parse_line(file.readline())
                if isinstance(line, Entry) and line.sequence > after:
                    yield line

    @property
    def sequence(self) -> int:
        """The highest sequence so far."""
        with self._locked():
            self._catch_up()
            return self._sequence

    @property
    def damaged(self) -> int:
        """The number of lines with a wrong checksum: an edit or the disk changed them. They are not votes."""
        with self._locked():
            self._catch_up()
            return self._damaged

    @property
    def torn(self) -> int:
        """The bytes of unfinished lines in ``torn.bin``."""
        path = self.folder / "torn.bin"
        return path.stat().st_size if path.exists() else 0

    # mirroring -----------------------------------------------------------------------------------------------------------

    def mirrored(self, server: str) -> int:
        """Return the sequence up to which ``server`` has every vote."""
        return int(self._marks().get(server, 0))

    def mark_mirrored(self, server: str, sequence: int) -> None:
        """Record that ``server`` has every vote up to ``sequence``. If the record is lost, votes are mirrored again."""
        with self._locked():
            write_whole(self.folder / "mirrored.json", json.dumps({**self._marks(), server: sequence}).encode())

    def set_aside(self, server: str, sequence: int, reason: str) -> None:
        """Record that ``server`` refuses a vote."""
        refusal = json.dumps({"server": server, "sequence": sequence, "reason": reason}) + "\n"
        with self._locked():
            append_synced(self.folder / "set_aside.jsonl", refusal.encode())

    def refusals(self, server: str) -> dict[int, str]:
        """Return the reasons of ``server`` by the sequence of the refused vote."""
        path = self.folder / "set_aside.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        refusals = [json.loads(line) for line in lines]
        return {entry["sequence"]: entry["reason"] for entry in refusals if entry["server"] == server}

    @contextmanager
    def mirroring(self) -> Iterator[None]:
        """Lock the journal for mirroring or forgetting, so that nothing is mirrored while it is being forgotten."""
        with (self.folder / "mirror.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # deletion ------------------------------------------------------------------------------------------------------------

    def forget(self, is_selected: Callable[[CastVote], bool]) -> list[CastVote]:
        """Remove votes from the file and return them; their lines keep only the sequence.

        Damaged and torn lines are removed too, because they may belong to any voter.
        """
        with self._locked():
            self._catch_up()
            lines, removed, sequences = [], [], set()
            for raw, sequence in self._lines():
                line = parse_line(raw)
                if isinstance(line, Entry) and not is_selected(line.vote):
                    lines.append(raw)
                    continue
                if isinstance(line, Entry):
                    removed.append(line.vote)
                    sequences.add(sequence)
                lines.append(raw if isinstance(line, Forgotten) else written_line(Forgotten(sequence)))
            if removed or self._damaged or self.torn:
                write_whole(self._path, b"".join(lines))
                (self.folder / "torn.bin").unlink(missing_ok=True)
                self._forget_refusals(sequences)
                logger.warning("journal %s: removed %d votes and all damaged lines", self.folder, len(removed))
            return removed

    def _forget_refusals(self, sequences: set[int]) -> None:
        """Remove the reasons of servers too, because a reason may quote the vote."""
        path = self.folder / "set_aside.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            write_whole(path, b"".join(line for line in lines if json.loads(line)["sequence"] not in sequences))

    # the file ------------------------------------------------------------------------------------------------------------

    def _begin_index(self) -> None:
        self._offset = self._sequence = self._damaged = 0
        self._sequences: list[int] = []
        self._offsets: list[int] = []
        self._votes: dict[str, int] = {}  # vote_id -> the offset of its last revision

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock against other threads and processes. A nested call in the same thread does nothing."""
        with self._thread_lock:
            if getattr(self, "_held", False):
                yield
                return
            with (self.folder / "lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._held = True
                try:
                    yield
                except JournalError:
                    raise
                except OSError as error:
                    raise JournalError(f"the vote journal {self.folder} cannot be used: {error}") from error
                finally:
                    self._held = False

    def _catch_up(self) -> None:
        """Index the lines that other processes wrote, and move a last line that a crash left unfinished to ``torn.bin``."""
        stat = self._path.stat()
        if self._file != (stat.st_dev, stat.st_ino) or stat.st_size < self._offset:
            self._file = (stat.st_dev, stat.st_ino)
            self._begin_index()
        if stat.st_size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):  # No process is writing now, because this one holds the lock.
                    self._set_torn_aside(raw)
                    return
                self._index(raw)

    def _index(self, raw: bytes) -> None:
        line = parse_line(raw)
        if line is None:
            self._sequence += 1  # The line had a sequence, and the mirror may be past it.
            self._damaged += 1
            logger.error(
                "journal %s: the line at byte %d is damaged and is not counted as a vote", self.folder, self._offset
            )
        else:
            self._sequence = line.sequence
        self._sequences.append(self._sequence)
        self._offsets.append(self._offset)
        if isinstance(line, Entry):
            self._votes[line.vote.vote_id] = self._offset
        self._offset += len(raw)

    def _lines(self) -> Iterator[tuple[bytes, int]]:
        with self._path.open("rb") as file:
            for sequence in self._sequences:
                yield file.readline(), sequence

    def _read_entry(self, offset: int) -> Entry:
        with self._path.open("rb") as file:
            file.seek(offset)
            line = parse_line(file.readline())
        if not isinstance(line, Entry):
            raise JournalError(
                f"{self._path} was changed at byte {offset} while it was read; fix: do not edit the file"
            )
        return line

    def _append(self, vote: CastVote, first_sequence: int | None) -> Entry:
        sequence = self._sequence + 1
        entry = Entry(sequence, first_sequence or sequence, vote)
        raw = written_line(entry)
        try:
            append_synced(self._path, raw)
        except OSError as error:
            raise JournalError(f"the vote was not cast: {self._path} cannot be written: {error}") from error
        self._index(raw)
        return entry

    def _set_torn_aside(self, raw: bytes) -> None:
        append_synced(self.folder / "torn.bin", raw + b"\n")
        with self._path.open("r+b") as file:
            file.truncate(self._offset)
            os.fsync(file.fileno())
        logger.error(
            "journal %s: a crash left an unfinished line of %d bytes, a vote that was not acknowledged; it is in torn.bin",
            self.folder,
            len(raw),
        )

    def _marks(self) -> dict[str, Any]:
        path = self.folder / "mirrored.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def _read_or_create(self, name: str, make: Callable[[], str]) -> str:
        path = self.folder / name
        if not path.exists():
            write_whole(path, make().encode())
        return path.read_text(encoding="ascii").strip()
