"""The journal: what is acknowledged is there, whatever dies, and what is damaged is told."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import votes_cast
from conftest import wait_for
from votes_cast import NOON, vote

from mlflow_finetune_plugin.errors import JournalError, VoteError
from mlflow_finetune_plugin.votes import CastVote, Journal, Receipt, Turn
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal("bot", tmp_path / "votes")


def start_casting(folder: Path, first: int, count: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, votes_cast.__file__, str(folder), str(first), str(count), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_vote_is_read_back_as_it_was_cast(journal):
    cast = vote(1, "both_bad", reasons=("rude", "wrong"), comment="no \ud800 \u2028 answer\n", answers=("", "é\0"))
    journal.cast(cast)
    assert [entry.vote for entry in Journal("bot", journal.folder).entries()] == [cast]


def test_the_same_vote_twice_is_one(journal):
    first = journal.cast(vote(1, "left"))
    again = journal.cast(replace(vote(1, "left"), cast_at=NOON.replace(hour=13)))
    assert again == first
    assert len(list(journal.entries())) == 1


def test_a_changed_vote_keeps_its_id_and_its_place(journal):
    journal.cast(vote(1, "left"))
    journal.cast(vote(2, "left"))
    changed = journal.cast(vote(1, "right"))
    assert (changed.sequence, changed.first_sequence, changed.vote.revision) == (3, 1, 2)
    assert changed.vote.vote_id == vote(1).vote_id


def test_who_was_left_does_not_make_another_vote(journal):
    shown = vote(1, "left")
    swapped = replace(
        shown, sides=(replace(shown.sides[1], position="left"), replace(shown.sides[0], position="right"))
    )
    assert swapped.vote_id == shown.vote_id


def test_the_same_word_for_the_other_answer_is_a_changed_vote(journal):
    shown = vote(1, "left")
    swapped = replace(
        shown, sides=(replace(shown.sides[1], position="left"), replace(shown.sides[0], position="right"))
    )
    journal.cast(shown)
    assert journal.cast(swapped).vote.revision == 2


def test_order_is_of_casting_even_when_the_clock_goes_back(journal):
    journal.cast(vote(1, cast_at=NOON))
    journal.cast(vote(2, cast_at=NOON.replace(year=1999)))
    journal.cast(vote(3, cast_at=NOON.replace(year=2099)))
    assert [(entry.sequence, entry.vote.turn.turn_id) for entry in journal.entries()] == [
        (1, "t-1"),
        (2, "t-2"),
        (3, "t-3"),
    ]


@pytest.mark.fault
@pytest.mark.parametrize("cut", [1, 40, 700])
def test_a_torn_last_line_is_set_aside_and_told(journal, caplog, cut):
    journal.cast(vote(1))
    journal.cast(vote(2))
    path = journal.folder / "votes.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    after = Journal("bot", journal.folder)
    assert [entry.vote.turn.turn_id for entry in after.entries()] == ["t-1"]
    assert "unfinished line" in caplog.text
    assert after.torn > 0
    assert after.cast(vote(3)).sequence == 2
    assert [entry.vote.turn.turn_id for entry in after.entries()] == ["t-1", "t-3"]


@pytest.mark.fault
def test_a_damaged_line_counts_as_none_and_keeps_its_sequence(journal, caplog):
    for number in (1, 2, 3):
        journal.cast(vote(number))
    path = journal.folder / "votes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b'"left"', b'"rift"', 1) + lines[2])
    after = Journal("bot", journal.folder)
    assert [entry.sequence for entry in after.entries()] == [1, 3]
    assert after.damaged == 1
    assert "damaged" in caplog.text
    path.write_bytes(lines[0] + lines[1] + lines[2].replace(b'"left"', b'"rift"', 1))
    assert Journal("bot", journal.folder).cast(vote(4)).sequence == 4  # 3 may have been mirrored


@pytest.mark.fault
@pytest.mark.process
def test_killed_while_casting_keeps_every_acknowledged_vote(journal):
    process = start_casting(journal.folder, 0, 100_000)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    told += process.stdout.read().split()
    process.wait()
    kept = {entry.vote.vote_id for entry in Journal("bot", journal.folder).entries()}
    assert len(told) >= 40
    assert {vote_id for vote_id in told if len(vote_id) == 36} <= kept
    assert len(kept) - len(told) in (0, 1)  # the one that was written and not told yet


@pytest.mark.fault
@pytest.mark.process
def test_two_processes_share_one_journal(journal, tmp_path):
    starter = tmp_path / "go"
    processes = [start_casting(journal.folder, first, 120, str(starter)) for first in (0, 80)]  # forty come from both
    wait_for(lambda: len(list(tmp_path.glob("go.ready-*"))) == 2, 60, "two processes about to cast")
    starter.touch()
    told = [process.communicate()[0].split() for process in processes]
    entries = list(journal.entries())
    assert [entry.sequence for entry in entries] == list(range(1, 201))
    assert {entry.vote.vote_id for entry in entries} == set(told[0]) | set(told[1])
    assert journal.damaged == journal.torn == 0


@pytest.mark.fault
@pytest.mark.process
def test_full_disk_is_told_and_the_vote_is_not_there(journal):
    journal.cast(vote(1))
    code = (
        "import resource, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from votes_cast import vote; from pathlib import Path; from mlflow_finetune_plugin.votes import Journal\n"
        "journal = Journal('bot', Path(sys.argv[1])); size = (journal.folder / 'votes.jsonl').stat().st_size\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))\n"
        "try: journal.cast(vote(2))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    place = str(Path(votes_cast.__file__).parent)
    said = subprocess.run(
        [sys.executable, "-c", code, str(journal.folder), place], capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("JournalError the vote was not cast"), said
    after = Journal("bot", journal.folder)
    assert [entry.vote.turn.turn_id for entry in after.entries()] == ["t-1"]
    assert after.torn == 0


def test_forgotten_votes_leave_the_disk_and_the_sequence_stays(journal):
    for number, voter in ((1, "v-1"), (2, "v-2"), (3, "v-1")):
        journal.cast(vote(number, voter=voter, comment=f"secret of {voter}"))
    gone = journal.forget(lambda cast: cast.voter == "v-1")
    assert [cast.turn.turn_id for cast in gone] == ["t-1", "t-3"]
    assert b"secret of v-1" not in (journal.folder / "votes.jsonl").read_bytes()
    assert journal.cast(vote(4)).sequence == 4
    other = Journal("bot", journal.folder)
    assert [entry.sequence for entry in other.entries()] == [2, 4]


def test_forgetting_leaves_nothing_unreadable_behind(journal):
    for number in (1, 2, 3):
        journal.cast(vote(number, voter=f"v-{number}"))
    journal.set_aside("http://a", 1, "refused: secret")
    journal.set_aside("http://a", 3, "refused as well")
    path = journal.folder / "votes.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"damaged secret\n" + lines[2] + b'{"torn secret')
    after = Journal("bot", journal.folder)
    after.forget(lambda cast: cast.voter == "v-1")
    assert [entry.sequence for entry in after.entries()] == [3]
    assert (after.damaged, after.torn, after.sequence) == (0, 0, 3)
    assert after.refusals("http://a") == {3: "refused as well"}
    assert not [file for file in journal.folder.iterdir() if b"secret" in file.read_bytes()]


def test_another_process_sees_that_the_file_was_rewritten(journal):
    other = Journal("bot", journal.folder)
    journal.cast(vote(1))
    assert other.find(vote(1).vote_id) is not None
    journal.forget(lambda cast: True)
    assert other.find(vote(1).vote_id) is None


def test_voters_are_salted_hashes_and_visitors_are_one(journal, tmp_path):
    alice = journal.voter("alice")
    assert alice == Journal("bot", journal.folder).voter(" alice ") != journal.voter("bob")
    assert alice != Journal("bot", tmp_path / "elsewhere").voter("alice")
    assert journal.voter(None) == journal.voter("") == ANONYMOUS
    assert "alice" not in alice
    assert stat.S_IMODE(os.stat(journal.folder / "salt").st_mode) == 0o600


def test_marks_are_per_server(journal):
    journal.mark_mirrored("http://a", 7)
    assert (journal.mirrored("http://a"), journal.mirrored("http://b")) == (7, 0)
    assert json.loads((journal.folder / "mirrored.json").read_text()) == {"http://a": 7}


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError, match="fix:"):
        Journal("bot", tmp_path / "file" / "votes")


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choice": "both"}, "'both' is not a choice"),
        ({"voter": ""}, "voter is empty"),
        ({"sides": vote(1).sides[:1]}, "needs two sides"),
        ({"sides": (vote(1).sides[1], vote(1).sides[0])}, "in this order"),
        ({"sides": (vote(1).sides[0], replace(vote(1).sides[0], position="right"))}, "both sides are the same answer"),
        ({"kind": "robot"}, "not a kind"),
        ({"comment": "x" * 4001}, "longer than 4000"),
        ({"reasons": ("",)}, "tags of 1 to 100"),
        ({"cast_at": NOON.replace(tzinfo=None)}, "no time zone"),
    ],
)
def test_what_is_no_vote_is_refused(change, said):
    with pytest.raises(VoteError, match=said):
        replace(vote(1), **change)


def test_a_receipt_is_read_from_the_headers_of_the_router():
    headers = {
        "X-Finetune-Model": "my%20b%C3%B6t",
        "x-finetune-version": "7",
        "x-finetune-adapter-digest": "ad",
        "x-finetune-base-digest": "bd",
        "x-finetune-request-id": "req-1",
    }
    assert Receipt.from_headers(headers) == Receipt("my böt", "7", "ad", "bd", "req-1")
    assert Receipt.from_headers({**headers, "x-finetune-adapter-digest": ""}) is None
    of_base = Receipt.from_headers({**headers, "x-finetune-adapter-digest": "", "x-finetune-version": "base"})
    assert of_base is not None
    del headers["x-finetune-request-id"]
    assert Receipt.from_headers(headers) is None


def test_a_prompt_set_travels_with_the_turn_and_changes_no_id(journal):
    plain = vote(1)
    named = replace(plain, turn=replace(plain.turn, prompt_set="greetings"))
    assert named.vote_id == plain.vote_id
    assert named.turn.prompt_digest == plain.turn.prompt_digest
    assert CastVote.from_json(named.to_json()) == named
    assert journal.cast(named).vote.turn.prompt_set == "greetings"
    assert [entry.vote.turn.prompt_set for entry in journal.entries()] == ["greetings"]


def test_a_line_written_before_prompt_sets_had_names_is_read(journal):
    """A line as it was written then, byte for byte but for its checksum, which is over the rest."""
    turn = {"messages": [{"content": "hi?", "role": "user"}], "session": "s-1", "turn_id": "t-1"}
    sides = [
        {"answer": text, "position": position, "receipt": None, "trace_id": None}
        for position, text in (("left", "a"), ("right", "b"))
    ]
    words = {"choice": "tie", "comment": "", "kind": "person", "reasons": [], "voter": "v-1"}
    cast = {**words, "cast_at": "2026-11-21T12:00:00+00:00", "revision": 1, "sides": sides, "turn": turn}
    told = {"place": 1, "sequence": 1, "vote": cast}
    line = json.dumps(told, sort_keys=True, separators=(",", ":"))
    whole = {**told, "sha256": hashlib.sha256(line.encode()).hexdigest()}
    (journal.folder / "votes.jsonl").write_text(json.dumps(whole) + "\n")
    (entry,) = journal.entries()
    assert entry.vote.turn.prompt_set is None
    assert journal.damaged == 0
    assert json.loads(json.dumps(entry.vote.to_json())) == cast


@pytest.mark.parametrize("name", ["", "x" * 101])
def test_a_prompt_set_has_a_short_name(name):
    with pytest.raises(VoteError, match="use 1 to 100"):
        Turn("t-1", "s-1", ({"role": "user", "content": "hi?"},), name)
