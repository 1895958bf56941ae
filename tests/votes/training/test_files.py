"""Votes as the training rows of a run: what each form takes, groups without leaks, and the same rows in a resumed run."""

import json
from dataclasses import replace

import pytest
from votes_cast import vote

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.votes.preferences import CONTRADICTION, EVENLY_SPLIT, HAS_PICTURES, NOT_DECISIVE, REPEATED
from mlflow_finetune_plugin.votes.training.files import GROUP_COLUMN, read_vote_files, rows_path, write_vote_files
from mlflow_finetune_plugin.votes.training.rows import LAYOUTS, REPEATED_PROMPT, TIE

pytestmark = pytest.mark.store

ONE_OF_EACH = (
    vote(1, "left", answers=("good", "bad")),
    vote(2, "right", answers=("worse", "better")),
    vote(3, "tie", answers=("same a", "same b")),
    vote(4, "both_bad", answers=("awful", "poor")),
)


def written(ledger, folder, form="pairs", *, grouped=False, earlier=()):
    (file,) = write_vote_files(["bot"], form, folder, grouped=grouped, tracking_uri=ledger.uri, earlier=earlier)
    rows = [json.loads(line) for line in rows_path(folder, "bot").read_text().splitlines()]
    assert len(rows) == file.rows
    return file, rows


def test_pairs_leave_out_ties_and_both_bad_and_count_them(ledger, tmp_path):
    ledger.cast(*ONE_OF_EACH)
    file, rows = written(ledger, tmp_path / "rows")
    assert [(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows] == [
        ("good", "bad"),
        ("better", "worse"),
    ]
    assert file.left_out == {NOT_DECISIVE: 2}
    assert (len(file.votes), file.voters, file.versions) == (4, 1, ("1", "2"))
    assert "2 rows of 4 votes by 1 voter(s) on answers of 1, 2; left out 2: tie or both bad" in file.sentence


def test_rated_answers_take_both_bad_as_two_bad_answers_and_no_tie(ledger, tmp_path):
    ledger.cast(*ONE_OF_EACH)
    file, rows = written(ledger, tmp_path / "rows", "rated")
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [
        ("good", True),
        ("bad", False),
        ("worse", False),
        ("better", True),
        ("awful", False),
        ("poor", False),
    ]
    assert file.left_out == {TIE: 1}


@pytest.mark.parametrize(("form", "rows_of_the_other"), [("pairs", 1), ("rated", 2), ("answers", 1), ("prompts", 1)])
def test_prompts_with_pictures_give_no_rows_and_are_counted(ledger, tmp_path, form, rows_of_the_other):
    cast = vote(1, "left", answers=("good", "bad"))
    turn = {"role": "user", "content": "\ufffcwhat is it?", "pictures": ["a" * 64]}
    ledger.cast(replace(cast, turn=replace(cast.turn, messages=(turn,))), vote(2, "left"))
    file, rows = written(ledger, tmp_path / "rows", form)
    assert len(rows) == rows_of_the_other
    assert "pictures" not in json.dumps(rows)
    assert file.left_out == {HAS_PICTURES: 1}


def test_the_voters_of_a_turn_rate_it_together(ledger, tmp_path):
    ledger.cast(
        *(vote(1, choice, voter=f"v-{n}") for n, choice in enumerate(("left", "both_bad", "both_bad"))),
        *(vote(2, choice, voter=f"v-{n}") for n, choice in enumerate(("left", "right", "tie"))),
        *(vote(3, choice, voter=f"v-{n}") for n, choice in enumerate(("tie", "tie", "both_bad"))),
        *(vote(4, choice, voter=f"v-{n}") for n, choice in enumerate(("right", "right", "both_bad"))),
    )
    file, rows = written(ledger, tmp_path / "rows", "rated")
    assert [(row["prompt"][0]["content"], row["label"]) for row in rows] == [
        ("question 1", False),
        ("question 1", False),
        ("question 4", False),
        ("question 4", True),
    ]
    assert file.left_out == {EVENLY_SPLIT: 1, TIE: 1}


def test_an_answer_is_rated_once_and_never_both_ways(ledger, tmp_path):
    same = {"question": "the same"}
    ledger.cast(
        vote(1, "left", answers=("x", "y"), **same),
        vote(2, "left", answers=("x", "z"), **same),
        vote(3, "left", answers=("z", "w"), **same),
    )
    file, rows = written(ledger, tmp_path / "rows", "rated")
    assert [(row["completion"][0]["content"], row["label"]) for row in rows] == [
        ("x", True),
        ("y", False),
        ("w", False),
    ]
    assert file.left_out == {CONTRADICTION: 2, REPEATED: 1}


def test_imitation_takes_the_winners_and_prompts_are_taken_once(ledger, tmp_path):
    ledger.cast(*ONE_OF_EACH, vote(5, "left", question="question 1", answers=("p", "q")))
    _, rows = written(ledger, tmp_path / "answers", "answers")
    assert [row["completion"][0]["content"] for row in rows] == ["good", "better", "p"]
    file, rows = written(ledger, tmp_path / "prompts", "prompts")
    assert [row["prompt"][0]["content"] for row in rows] == [f"question {n}" for n in (1, 2, 3, 4)]
    assert file.left_out == {REPEATED_PROMPT: 1}


@pytest.mark.parametrize("form", ["answers", "pairs", "rated", "prompts"])
def test_the_data_room_reads_every_row_of_each_form(ledger, tmp_path, form):
    context = ({"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"})
    talk = vote(9, answers=("c", "d"))
    talk = replace(talk, turn=replace(talk.turn, messages=(*context, *talk.turn.messages)))
    ledger.cast(*ONE_OF_EACH, talk)
    _, rows = written(ledger, tmp_path / "rows", form, grouped=True)
    reading = interpret(rows, ColumnSettings(LAYOUTS[form], {}, group=GROUP_COLUMN, form=form))
    conversations = [conversation for row in rows for conversation in reading.conversations(row)]
    reading.check()
    assert len(conversations) == len(rows)
    assert [message["content"] for message in conversations[-1].messages[:3]] == ["hello", "hi", "question 9"]
    assert all(conversation.group for conversation in conversations)


def test_judges_and_votes_without_receipts_are_counted_and_not_used(ledger, tmp_path):
    bare = vote(8)
    bare = replace(bare, sides=tuple(replace(side, receipt=None) for side in bare.sides))
    ledger.cast(vote(1, "left"), vote(7, "left", voter="judge:x", kind="judge"), bare)
    file, rows = written(ledger, tmp_path / "rows")
    assert len(rows) == len(file.votes) == 1
    assert file.not_used == {"votes of judges": 1, "without two receipts": 1}


def test_groups_keep_voters_and_prompts_apart_where_there_are_enough(ledger, tmp_path):
    ledger.cast(*(vote(f"{v}-{n}", voter=f"v-{v}", question=f"prompt {v} {n}") for v in range(7) for n in range(2)))
    ledger.cast(vote("shared", voter="v-0", question="prompt 1 0", answers=("another", "pair")))  # joins v-0 and v-1
    file, rows = written(ledger, tmp_path / "rows", grouped=True)
    groups = [row["group"] for row in rows]
    assert len(set(groups)) == 6
    assert groups[0] == groups[1] == groups[2] == groups[3] == groups[-1]
    assert "6 groups of voters and prompts: none of either is on both sides" in file.sentence
    assert not any("v-0" in group for group in groups)


@pytest.mark.parametrize("voters", [1, 5])
def test_few_voters_are_grouped_by_prompts_alone_and_the_report_says_so(ledger, tmp_path, voters):
    ledger.cast(
        *(vote(n, voter=f"v-{n % voters}", question=f"prompt {n % 10}", answers=(f"a{n}", "b")) for n in range(10))
    )
    ledger.cast(vote("again", voter="v-0", question="prompt 3", answers=("c", "d")))
    file, rows = written(ledger, tmp_path / "rows", grouped=True)
    groups = {row["prompt"][0]["content"]: row["group"] for row in rows}
    assert len(set(groups.values())) == 10
    assert all(row["group"] == groups[row["prompt"][0]["content"]] for row in rows)
    assert "voters may be on both, because voters and prompts form" in file.sentence


def test_one_large_group_is_no_split(ledger, tmp_path):
    ledger.cast(*(vote(n, voter="v-0") for n in range(10)), *(vote(f"w{n}", voter=f"v-{n + 1}") for n in range(9)))
    file, rows = written(ledger, tmp_path / "rows", grouped=True)
    assert len({row["group"] for row in rows}) == 19
    assert "the largest with 10 of 19 rows" in file.sentence


def test_turns_of_one_conversation_are_one_group(ledger, tmp_path):
    later = vote(2, answers=("c", "d"))
    messages = ({"role": "user", "content": "question 1"}, {"role": "assistant", "content": "x"}, *later.turn.messages)
    ledger.cast(vote(1), replace(later, turn=replace(later.turn, messages=messages)), vote(3))
    _, rows = written(ledger, tmp_path / "rows", grouped=True)
    assert rows[0]["group"] == rows[1]["group"] != rows[2]["group"]


def test_a_resumed_run_has_the_same_rows(ledger, tmp_path):
    ledger.cast(*ONE_OF_EACH)
    before, rows = written(ledger, tmp_path / "first", grouped=True)
    ledger.cast(vote(0, "left", answers=("new", "votes")), vote(9, "left", question="question 1", answers=("n", "m")))
    again, same = written(ledger, tmp_path / "second", grouped=True, earlier=[before])
    assert (again.digest, same) == (before.digest, rows)
    assert read_vote_files(tmp_path / "second", ["bot"]) == (again,)
    fresh, more = written(ledger, tmp_path / "third", grouped=True)
    assert (len(more), fresh.digest == before.digest) == (4, False)


def test_a_resumed_run_stops_where_its_votes_are_gone(ledger, tmp_path):
    ledger.cast(*ONE_OF_EACH)
    before, _ = written(ledger, tmp_path / "first")
    ledger.cast(vote(1, "right", answers=("good", "bad")))  # the voter changed the vote
    with pytest.raises(
        DataError, match=r"1 of the 4 votes of the run were deleted or changed since it began.*fix: start a new run"
    ):
        written(ledger, tmp_path / "second", earlier=[before])
    with pytest.raises(DataError, match="the votes of the run give other rows than when it began"):
        written(ledger, tmp_path / "third", "rated", earlier=[replace(before, votes=before.votes[1:])])


@pytest.mark.bad_input
def test_votes_that_give_nothing_are_refused_with_the_reason(ledger, tmp_path):
    with pytest.raises(
        DataError, match=r"votes:nobody: the registry has no model 'nobody'.*fix: name a registered model"
    ):
        write_vote_files(["nobody"], "pairs", tmp_path / "rows", grouped=False, tracking_uri=ledger.uri)
    with pytest.raises(
        DataError, match=r"votes:bot: people have cast no votes with receipts; fix: vote in the playground"
    ):
        written(ledger, tmp_path / "rows")
    ledger.cast(vote(1, "both_bad"), vote(2, "both_bad"))
    with pytest.raises(
        DataError, match=r"2 votes, and no vote prefers one of two answers \(2: tie or both bad\).*-e kto"
    ):
        written(ledger, tmp_path / "rows")
    with pytest.raises(DataError, match=r"all 4 answers are bad; fix: vote for the better answer"):
        written(ledger, tmp_path / "rows", "rated")
    ledger.cast(vote(3, "left"))
    with pytest.raises(DataError, match=r"all rows are of one prompt or one conversation, and none could be held out"):
        written(ledger, tmp_path / "rows", grouped=True)
