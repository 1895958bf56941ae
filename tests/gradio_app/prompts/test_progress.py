"""Who has judged what, by the journal; what comes next is unseen, and not the same for everybody."""

from dataclasses import replace

import pytest
from votes_cast import vote

from gradio_app.prompts.progress import JudgedPrompts, progress
from mlflow_finetune_plugin.votes import Journal
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS
from mlflow_finetune_plugin.votes.prompt_sets import PromptSet, PromptSetRow


def prompts(*questions):
    return PromptSet("set", tuple(PromptSetRow(q, ({"role": "user", "content": q},)) for q in questions))


SET = prompts("a", "b", "c")


@pytest.fixture
def journal(tmp_path) -> Journal:
    return Journal("bot", tmp_path / "votes")


def told(journal, voter="ann", session="s-1", versions=None, prompt_set=SET):
    return progress(prompt_set, JudgedPrompts(journal).of(voter, session, versions), voter, session)


def test_judged_prompts_come_no_more(journal):
    journal.cast(vote(1, voter="ann", question="b"))
    found = told(journal)
    assert (found.done, found.total) == (1, 3)
    assert {prompt.id for prompt in found.upcoming} == {"a", "c"}
    assert found.sentence == "1 of 3 prompts judged"
    assert told(journal, voter="bob").done == 0


def test_a_set_all_judged_says_so(journal):
    for number, question in enumerate("abc"):
        journal.cast(vote(number, voter="ann", question=question))
    found = told(journal)
    assert found.next is None
    assert found.sentence == "You have judged all 3 prompts of this set. Thank you!"


def test_new_sides_are_judged_anew(journal):
    journal.cast(vote(1, voter="ann", question="a", left="2", right="1"))
    assert told(journal, versions=frozenset({"1", "2"})).done == 1
    assert told(journal, versions=frozenset({"3", "1"})).done == 0


def test_a_system_prompt_that_the_page_added_changes_nothing(journal):
    cast = vote(1, voter="ann", question="a")
    asked = ({"role": "system", "content": "be short"}, *cast.turn.messages)
    journal.cast(replace(cast, turn=replace(cast.turn, messages=asked)))
    assert told(journal).done == 1


def test_visitors_without_a_login_each_have_their_own_progress(journal):
    journal.cast(vote(1, voter=ANONYMOUS, question="a"))  # of session s-anonymous
    assert told(journal, voter=ANONYMOUS, session="s-anonymous").done == 1
    assert told(journal, voter=ANONYMOUS, session="s-other").done == 0


def test_votes_cast_since_the_last_look_count_and_forgotten_ones_do_not(journal):
    judged = JudgedPrompts(journal)
    assert judged.of("ann", "s-1") == frozenset()
    journal.cast(vote(1, voter="ann", question="a"))
    journal.cast(vote(2, voter="bob", question="b"))
    assert (len(judged.of("ann", "s-1")), len(judged.of("bob", "s-1"))) == (1, 1)
    journal.forget(lambda cast: cast.voter == "ann")
    assert (len(judged.of("ann", "s-1")), len(judged.of("bob", "s-1"))) == (0, 1)


def test_three_voters_do_not_begin_with_the_same_prompts():
    fifty = prompts(*[f"question {number}" for number in range(50)])
    first_ten = [
        {prompt.id for prompt in progress(fifty, (), voter, "s-1").upcoming[:10]} for voter in ("ann", "bob", "eve")
    ]
    assert len(set.union(*first_ten)) >= 20
    again = progress(fifty, (), "ann", "another session")
    assert {prompt.id for prompt in again.upcoming[:10]} == first_ten[0]


def test_judging_one_prompt_does_not_move_the_others():
    before = progress(SET, (), "ann", "s-1").upcoming
    after = progress(SET, [before[0].digest], "ann", "s-1").upcoming
    assert after == before[1:]
    first_of_seeds = {progress(SET, (), "ann", "s-1", seed=seed).next.id for seed in range(20)}
    assert first_of_seeds == {"a", "b", "c"}
