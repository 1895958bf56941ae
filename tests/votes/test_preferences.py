"""Preference rows: decided turns, no answer twice, and TRL takes them."""

import json
from collections import Counter

import pytest
from votes_cast import receipt, vote

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.votes import Mirror, read_votes
from mlflow_finetune_plugin.votes import preferences as made
from mlflow_finetune_plugin.votes.mlflow.answer_trace import TracedAnswer, root_span
from mlflow_finetune_plugin.votes.mlflow.reading import read_texts
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces
from mlflow_finetune_plugin.votes.preferences import exportable, preferences, write_preferences


def exported(ledger, *votes):
    for cast in votes:
        ledger.journal.cast(cast)
    Mirror(ledger.journal).flush()
    votes = exportable(read_votes("bot"))
    return preferences(votes, read_texts("bot", votes))


def answers(found):
    return [(row.prompt[-1]["content"], row.chosen, row.rejected) for row in found.rows]


def test_decided_turns_become_rows(ledger):
    found = exported(
        ledger,
        vote(1, "left", answers=("good", "bad")),
        vote(2, "right", answers=("bad", "good")),
        vote(3, "tie"),
        vote(4, "both_bad"),
    )
    assert answers(found) == [("question 1", "good", "bad"), ("question 2", "good", "bad")]
    assert found.left_out == {made.NOT_DECISIVE: 2}
    assert found.rows[1].row() == {
        "prompt": [{"role": "user", "content": "question 2"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    }


def test_several_voters_of_a_turn_give_one_row_by_majority(ledger):
    votes = [vote(1, choice, voter=f"v-{n}") for n, choice in enumerate(("left", "right", "left", "tie"))]
    votes += [vote(2, "left", voter="v-1"), vote(2, "right", voter="v-2")]
    found = exported(ledger, *votes)
    assert answers(found) == [("question 1", "a short answer", "another, longer answer")]
    assert found.left_out == {made.EVENLY_SPLIT: 1}
    told = found.rows[0].provenance()
    assert (told["for"], told["against"], len(told["vote_ids"])) == (2, 1, 4)
    assert told["chosen"]["receipt"]["version"] == "1"


def test_no_answer_to_a_prompt_appears_twice(ledger):
    same = {"question": "the same"}
    found = exported(
        ledger,
        vote(1, "left", answers=("x", "y"), **same),
        vote(2, "left", answers=("x", "y"), **same),  # the pair again
        vote(3, "left", answers=("x", "z"), **same),  # x again
        vote(4, "left", answers=("p", "q"), **same),
        vote(5, "left", answers=("q", "p"), **same),  # the contrary
        vote(6, "left", answers=("x", "y"), question="another prompt"),
    )
    assert answers(found) == [("the same", "x", "y"), ("another prompt", "x", "y")]
    assert found.left_out == {made.REPEATED: 2, made.CONTRADICTION: 2}
    seen = Counter((row.prompt[-1]["content"], answer) for row in found.rows for answer in (row.chosen, row.rejected))
    assert max(seen.values()) == 1


def test_what_says_nothing_is_left_out(ledger):
    found = exported(ledger, vote(1, answers=("same", "same")), vote(2, answers=(" ", "words")))
    assert found.rows == ()
    assert found.left_out == {made.SAME_TEXT: 1, made.EMPTY: 1}


def test_two_answers_of_one_version_are_preference_data_and_no_vote(ledger):
    assert len(exported(ledger, vote(1, left="2", right="2")).rows) == 1


def test_judges_and_votes_without_receipts_are_not_exported(ledger):
    bare = vote(2)
    sides = tuple(type(side)(None, side.answer, None, side.position) for side in bare.sides)
    found = exported(ledger, vote(1, voter="judge:m", kind="judge"), type(bare)(bare.turn, sides, "left", "v-1"))
    assert found.rows == ()
    assert found.left_out == {}


def test_a_text_that_was_changed_since_is_left_out(ledger):
    exported(ledger, vote(1), vote(2))
    traces = VoteTraces("bot")
    other = vote(1, answers=("somebody", "wrote this later"))
    traces.tracing.log_spans(traces.experiment(), [root_span(other.turn, TracedAnswer(other.sides[0], 1, 1))])
    found = exported(ledger)
    assert found.left_out == {made.NO_TEXT: 1}


def test_files_are_written_side_by_side(ledger, tmp_path):
    found = exported(ledger, vote(1, answers=("ünï", "\u2028code")))
    beside = write_preferences(tmp_path / "dpo.jsonl", found)
    rows = [json.loads(line) for line in (tmp_path / "dpo.jsonl").read_text().split("\n") if line]
    assert rows == [row.row() for row in found.rows]
    assert beside == tmp_path / "dpo.meta.jsonl"
    assert json.loads(beside.read_text())["chosen"]["receipt"]["request_id"] == receipt("1", "req-1-l").request_id
    with pytest.raises(DataError, match="cannot be written"):
        write_preferences(tmp_path / "nowhere" / "dpo.jsonl", found)


def test_trl_takes_the_rows(ledger, tmp_path):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

    votes = [vote(n, "left", answers=(f"good answer {n}", f"bad answer {n}")) for n in range(3)]
    write_preferences(tmp_path / "dpo.jsonl", exported(ledger, *votes))
    rows = load_dataset(
        "json", data_files=str(tmp_path / "dpo.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    tokenizer.chat_template = tokenizer.chat_template or ChatRenderer(tokenizer).chat_template
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_FOLDER)
    settings = DPOConfig(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none", max_length=None)
    trainer = DPOTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    prepared = trainer.train_dataset
    assert len(prepared) == 3
    chosen = tokenizer.decode(prepared[0]["prompt_ids"]) + tokenizer.decode(prepared[0]["chosen_ids"])
    assert "question 0" in chosen
    assert "good answer 0" in chosen
    assert "bad answer 0" in tokenizer.decode(prepared[0]["rejected_ids"])
