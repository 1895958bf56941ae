"""The journal of one model's votes on this disk: append-only, checksummed, nothing acknowledged before it is on the disk.

``votes.jsonl``    one line a vote: sequence, place, vote, and the SHA-256 of these
``torn.bin``       what a crash left of lines that nobody was told were written
``mirrored.json``  per tracking server, up to which sequence it has the votes
``set_aside.jsonl`` votes that a tracking server refuses, with its reason; they stay in votes.jsonl
``forgotten.jsonl`` what was forgotten, as keyed digests, for those who hold turns in memory (``tombstones``)
``salt``           32 random bytes behind the voters' hashes; never leaves this folder, mode 0600
``id``             which journal this is, among those of several hosts

Several processes of one host may cast at once. To make one person the same voter on several hosts, copy ``salt`` (not
``id``) before the first vote.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mlflow_finetune_plugin.durable_files import append_synced, sync, write_whole
from mlflow_finetune_plugin.errors import JournalError
from mlflow_finetune_plugin.jobs.folder import jobs_home
from mlflow_finetune_plugin.votes.journal.lines import Forgotten, Line, parse_line, written_line
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A vote in the journal. ``sequence`` counts all votes and changes from 1; ``place`` is the sequence of revision 1.

    Whoever needs votes in order takes the last revision at its ``place``: a change of mind is no later vote. Sequences
    are given under a lock, so they are the order in which votes came; wall clocks jump and are not asked.
    """

    sequence: int
    place: int
    vote: CastVote


def journal_folder(model: str) -> Path:
    """Where this user's journal of a model is; the folder may not exist."""
    return jobs_home() / "votes" / quote(model, safe="").replace(".", "%2E")


class Journal:
    """Opens, or begins, the journal of ``model`` in ``folder``. Raises JournalError where the disk refuses."""

    def __init__(self, model: str, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder or journal_folder(model)
        self._thread_lock = threading.RLock()
        self._file: tuple[int, int] | None = None  # device and inode that the index speaks of
        self._begin_index()
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked():
                self.id = self._made_once("id", lambda: secrets.token_hex(8))
                self._salt = bytes.fromhex(self._made_once("salt", lambda: secrets.token_hex(32)))
                self._path.touch(mode=0o600)
                sync(self.folder)
                self._catch_up()
        except (OSError, ValueError) as error:
            raise JournalError(
                f"the journal of votes {self.folder} cannot be used: {error}; fix: its disk or rights"
            ) from error

    @property
    def _path(self) -> Path:
        return self.folder / "votes.jsonl"

    def voter(self, login: str | None) -> str:
        """The salted hash (HMAC-SHA-256) that stands for a person; ``anonymous`` for who has no login."""
        name = (login or "").strip()
        if not name:
            return ANONYMOUS
        return "v-" + self.keyed_digest(name)[:32]

    def keyed_digest(self, text: str) -> str:
        """HMAC-SHA-256 under the salt: who has not this folder cannot try names."""
        return hmac.new(self._salt, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def cast(self, vote: CastVote) -> Entry:
        """Writes the vote; when this returns, it is on the disk. The same vote again changes nothing and gives its entry.

        A vote that this voter cast on this turn and pair before, and that says something else now, becomes its next
        revision. Raises JournalError when it cannot be written: then it was not cast.
        """
        with self._locked():
            self._catch_up()
            known = self._votes.get(vote.vote_id)
            if known is not None:
                entry = self._read_entry(known)
                if entry.vote.says_the_same(vote):
                    return entry
                vote = replace(vote, revision=entry.vote.revision + 1)
                return self._append(vote, entry.place)
            return self._append(replace(vote, revision=1), None)

    def find(self, vote_id: str) -> Entry | None:
        """The last revision of a vote."""
        with self._locked():
            self._catch_up()
            known = self._votes.get(vote_id)
            return None if known is None else self._read_entry(known)

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """Every vote and change with a sequence above ``after``, in order; what is forgotten or damaged is passed by."""
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
                if isinstance(line, Line) and line.sequence > after:
                    yield Entry(line.sequence, line.place, line.vote)

    @property
    def sequence(self) -> int:
        """The last one given."""
        with self._locked():
            self._catch_up()
            return self._sequence

    @property
    def damaged(self) -> int:
        """Lines whose checksum is not theirs: somebody, or the disk, changed them. They count as no votes."""
        with self._locked():
            self._catch_up()
            return self._damaged

    @property
    def torn(self) -> int:
        """Bytes of unfinished lines set aside."""
        path = self.folder / "torn.bin"
        return path.stat().st_size if path.exists() else 0

    # what tracking servers have ------------------------------------------------------------------------------------------

    def mirrored(self, server: str) -> int:
        """Up to which sequence ``server`` has every vote."""
        return int(self._marks().get(server, 0))

    def mark_mirrored(self, server: str, sequence: int) -> None:
        """Whole or not at all. A mark that is lost costs a mirroring again, no vote."""
        with self._locked():
            write_whole(self.folder / "mirrored.json", json.dumps({**self._marks(), server: sequence}).encode())

    def set_aside(self, server: str, sequence: int, reason: str) -> None:
        """Remembers that ``server`` refuses a vote."""
        told = json.dumps({"server": server, "sequence": sequence, "reason": reason}) + "\n"
        with self._locked():
            append_synced(self.folder / "set_aside.jsonl", told.encode())

    def refusals(self, server: str) -> dict[int, str]:
        """The sequences that ``server`` refuses, with its reasons."""
        path = self.folder / "set_aside.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        told = [json.loads(line) for line in lines]
        return {entry["sequence"]: entry["reason"] for entry in told if entry["server"] == server}

    @contextmanager
    def mirroring(self) -> Iterator[None]:
        """Held by the one who mirrors or forgets, so that nothing is mirrored while it is being forgotten."""
        with (self.folder / "mirror.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # forgetting ----------------------------------------------------------------------------------------------------------

    def forget(self, is_meant: Callable[[CastVote], bool]) -> list[CastVote]:
        """Replaces votes by empty lines with their sequence, on the disk too, and drops what cannot be read.

        A line that is damaged or torn may be about anybody, so it goes as well. Returns the votes forgotten.
        """
        with self._locked():
            self._catch_up()
            kept, gone, sequences = [], [], set()
            for raw, sequence in self._lines():
                line = parse_line(raw)
                if isinstance(line, Line) and not is_meant(line.vote):
                    kept.append(raw)
                    continue
                if isinstance(line, Line):
                    gone.append(line.vote)
                    sequences.add(sequence)
                kept.append(raw if isinstance(line, Forgotten) else written_line(Forgotten(sequence)))
            if gone or self._damaged or self.torn:
                write_whole(self._path, b"".join(kept))
                (self.folder / "torn.bin").unlink(missing_ok=True)
                self._forget_refusals(sequences)
                logger.warning("journal %s: forgot %d lines and all that was damaged", self.folder, len(gone))
            return gone

    def _forget_refusals(self, sequences: set[int]) -> None:
        """A server's reason may quote the vote."""
        path = self.folder / "set_aside.jsonl"
        if path.exists():
            lines = path.read_bytes().splitlines(keepends=True)
            write_whole(path, b"".join(line for line in lines if json.loads(line)["sequence"] not in sequences))

    # the file ------------------------------------------------------------------------------------------------------------

    def _begin_index(self) -> None:
        self._offset = self._sequence = self._damaged = 0
        self._sequences: list[int] = []
        self._offsets: list[int] = []
        self._votes: dict[str, int] = {}  # vote_id -> where its last revision begins

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among threads and processes."""
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
                    raise JournalError(f"the journal of votes {self.folder} cannot be used: {error}") from error
                finally:
                    self._held = False

    def _catch_up(self) -> None:
        """Reads what other processes wrote, and sets aside a last line that a crash left unfinished."""
        stat = self._path.stat()
        if self._file != (stat.st_dev, stat.st_ino) or stat.st_size < self._offset:
            self._file = (stat.st_dev, stat.st_ino)
            self._begin_index()
        if stat.st_size == self._offset:
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for raw in file:
                if not raw.endswith(b"\n"):  # nobody is writing now, for we hold the lock
                    self._set_torn_aside(raw)
                    return
                self._index(raw)

    def _index(self, raw: bytes) -> None:
        line = parse_line(raw)
        if line is None:
            self._sequence += 1  # it had one, and the mirror may have passed it
            self._damaged += 1
            logger.error("journal %s: a line at byte %d is damaged; it counts as no vote", self.folder, self._offset)
        else:
            self._sequence = line.sequence
        self._sequences.append(self._sequence)
        self._offsets.append(self._offset)
        if isinstance(line, Line):
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
        if not isinstance(line, Line):
            raise JournalError(f"{self._path} changed at byte {offset} while it was read; fix: let nobody edit it")
        return Entry(line.sequence, line.place, line.vote)

    def _append(self, vote: CastVote, place: int | None) -> Entry:
        sequence = self._sequence + 1
        line = Line(sequence, place or sequence, vote)
        raw = written_line(line)
        try:
            append_synced(self._path, raw)
        except OSError as error:
            raise JournalError(f"the vote was not cast: {self._path} cannot be written: {error}") from error
        self._index(raw)
        return Entry(sequence, line.place, vote)

    def _set_torn_aside(self, raw: bytes) -> None:
        append_synced(self.folder / "torn.bin", raw + b"\n")
        with self._path.open("r+b") as file:
            file.truncate(self._offset)
            os.fsync(file.fileno())
        logger.error(
            "journal %s: a crash left an unfinished line of %d bytes, whose voter was told nothing; it is in torn.bin",
            self.folder,
            len(raw),
        )

    def _marks(self) -> dict[str, Any]:
        path = self.folder / "mirrored.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}

    def _made_once(self, name: str, make: Callable[[], str]) -> str:
        path = self.folder / name
        if not path.exists():
            write_whole(path, make().encode())
        return path.read_text(encoding="ascii").strip()
