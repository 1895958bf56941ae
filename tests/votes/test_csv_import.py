"""Votes from CSV: strict, all faults at once, the same file twice adds nothing."""

import csv

import pytest
from votes_cast import BASE_DIGEST, digest

from mlflow_finetune_plugin.errors import VoteError
from mlflow_finetune_plugin.votes import Journal, Mirror, read_votes
from mlflow_finetune_plugin.votes.csv_import import CsvImport, import_csv
from mlflow_finetune_plugin.votes.mlflow.reading import gate_votes

PLAIN = {"turn_id": "t-1", "prompt": "hi?", "left_answer": "a", "right_answer": "b", "choice": "left", "voter": "alice"}


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal("bot", tmp_path / "votes")


def write(path, *rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def with_receipts(row, number):
    return row | {
        f"{side}_{name}": value
        for side, version in (("left", "1"), ("right", "2"))
        for name, value in (
            ("model", "bot"),
            ("version", version),
            ("adapter_digest", digest(version)),
            ("base_digest", BASE_DIGEST),
            ("request_id", f"csv-{number}-{side}"),
        )
    }


def test_imported_votes_count_like_others(ledger, tmp_path):
    rows = [with_receipts(PLAIN | {"turn_id": f"t-{n}", "choice": "right", "voter": f"p{n}"}, n) for n in range(3)]
    path = write(tmp_path / "votes.csv", *rows)
    assert import_csv(path, ledger.journal) == CsvImport(3, 0, 0)
    assert import_csv(path, ledger.journal) == CsvImport(0, 3, 0)
    Mirror(ledger.journal).flush()
    votes = gate_votes(read_votes("bot"), "2", "1")
    assert [vote.choice for vote in votes] == ["candidate"] * 3
    assert len({vote.voter for vote in votes}) == 3


def test_without_receipts_a_vote_is_kept_and_told(journal, tmp_path):
    path = write(
        tmp_path / "votes.csv", PLAIN | {"reasons": "clear; short", "comment": "two\nlines"}, PLAIN | {"voter": ""}
    )
    assert import_csv(path, journal) == CsvImport(2, 0, 2)
    first, second = (entry.vote for entry in journal.entries())
    assert (first.reasons, first.comment, first.voter) == (("clear", "short"), "two\nlines", journal.voter("alice"))
    assert second.voter == "anonymous"


def test_every_fault_is_told_with_its_line_and_nothing_is_imported(journal, tmp_path):
    path = write(
        tmp_path / "votes.csv",
        PLAIN | {"comment": "over\nthree\nlines", "cast_at": "2026-11-21T12:00:00+00:00", "left_model": ""},
        PLAIN | {"turn_id": "t-2", "choice": "both"},
        PLAIN | {"turn_id": ""},
        PLAIN | {"turn_id": "t-3", "left_model": "bot"},
        PLAIN | {"turn_id": "t-4", "cast_at": "yesterday"},
        PLAIN | {"turn_id": "t-5", "cast_at": "2026-11-21T12:00:00"},
        PLAIN | {"turn_id": "t-6", "prompt": " "},
        PLAIN | {"choice": "right"},
    )
    with pytest.raises(VoteError) as told:
        import_csv(path, journal)
    said = str(told.value)
    for line, fault in (
        (5, "'both' is not a choice"),
        (6, "has no turn_id"),
        (7, "the left receipt is incomplete: left_version"),
        (8, "'yesterday' is not an ISO 8601"),
        (9, "no time zone"),
        (10, "prompt is empty"),
        (11, "earlier line"),
    ):
        assert any(f"line {line}:" in part and fault in part for part in said.splitlines()), (line, fault, said)
    assert "7 faults" in said
    assert list(journal.entries()) == []


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "column 'turn_id' is missing"),
        ("turn_id,prompt,left_answer,right_answer,choice,voter\n", "has no votes"),
        ("turn_id,prompt,left_answer,right_answer,choice,voter,winner\n", "unknown column 'winner'"),
        ("turn_id,left_answer,right_answer,choice,voter\n", "one of the columns 'prompt' and 'messages'"),
        ("turn_id,prompt,left_answer,right_answer,choice,voter\nt,p,a,b,left\n", "more or fewer fields"),
        ("turn_id,prompt,left_answer,right_answer,choice,voter\nt,p,a,b,left,v,x\n", "more or fewer fields"),
        (
            'turn_id,messages,left_answer,right_answer,choice,voter\nt,"{}",a,b,left,v\n',
            "must each have a role and content",
        ),
        ("turn_id,messages,left_answer,right_answer,choice,voter\nt,[1],a,b,left,v\n", "not a JSON list of messages"),
    ],
)
def test_a_file_that_is_no_votes_file_is_refused(journal, tmp_path, text, said):
    path = tmp_path / "votes.csv"
    path.write_text(text)
    with pytest.raises(VoteError, match=said):
        import_csv(path, journal)


def test_a_file_that_would_change_a_vote_is_refused(journal, tmp_path):
    import_csv(write(tmp_path / "a.csv", PLAIN), journal)
    with pytest.raises(VoteError, match="the journal has this vote as 'left'"):
        import_csv(write(tmp_path / "b.csv", PLAIN | {"choice": "right"}), journal)


def test_latin_1_and_missing_files_are_told(journal, tmp_path):
    (tmp_path / "latin.csv").write_bytes("turn_id,prompt\né,é\n".encode("latin-1"))
    with pytest.raises(VoteError, match="is not UTF-8"):
        import_csv(tmp_path / "latin.csv", journal)
    with pytest.raises(VoteError, match="cannot be read"):
        import_csv(tmp_path / "none.csv", journal)


def test_a_prompt_set_is_a_column(journal, tmp_path):
    rows = [PLAIN | {"prompt_set": "greetings"}, PLAIN | {"turn_id": "t-2", "prompt_set": " "}]
    import_csv(write(tmp_path / "votes.csv", *rows), journal)
    assert [entry.vote.turn.prompt_set for entry in journal.entries()] == ["greetings", None]
