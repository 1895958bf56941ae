"""Before the first vote the page says whether and how votes on its two sides count."""

import pytest
from mlflow import MlflowClient
from promote_command import POLICY
from proven_versions import register_proven, rows

from gradio_app.chat.client import Endpoint
from gradio_app.chat.endpoints import ServedModels
from gradio_app.chat.html import welcome
from gradio_app.chat.session import Contender, Session
from gradio_app.standings.terms import DEFAULT_TERMS, VoteTerms, counting_sentence, judged_version, read_terms
from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy


@pytest.mark.parametrize(
    ("pair", "champion", "judged"),
    [
        (("2", "1"), "1", "2"),
        (("1", "2"), "1", "2"),
        (("2", "3"), "1", None),
        (("base", "2"), "1", None),
        (("base", "2"), None, "2"),
        (("2", "1"), None, None),
        (("base", "1"), "1", None),
        ((None, "1"), "1", None),
        (("1", None), "1", None),
    ],
)
def test_a_promotion_reads_votes_between_a_version_and_the_champion_or_the_base(pair, champion, judged):
    assert judged_version(pair, champion) == judged


def test_the_sentence_says_whether_votes_count_and_what_they_can_do():
    assert counting_sentence(DEFAULT_TERMS, "1") == (
        "Your first 5 votes on this pair count when the version that challenges the champion is judged: "
        "enough votes against it stop it."
    )
    required = VoteTerms(VotesPolicy(required=True, per_voter=1))
    assert counting_sentence(required, "1") == (
        "Your first vote on this pair count when the version that challenges the champion is judged: "
        "it is promoted only if enough votes prefer it."
    ).replace("pair count", "pair counts")
    assert counting_sentence(required, None).endswith("challenges the base is judged: enough votes against it stop it.")
    left_out = VoteTerms(VotesPolicy(), "", are_read=False)
    assert "do not count for a promotion: the policy leaves votes out" in counting_sentence(left_out, "1")
    assert counting_sentence(None, "1").endswith("reads only votes between a version and the champion.")


def test_versions_are_those_that_the_router_lists():
    here = Endpoint("http://router", None)
    listed = ServedModels(
        (
            Contender("bot@champion", here, "bot@champion", "bot/1", "tiny"),
            Contender("base", here, "base", "tiny", None),
            Contender("tiny", here, "tiny", None, None),
            Contender("gpt", here, "gpt", None, None),
        ),
        ("bot",),
        (),
    )
    names = ("bot@champion", "base", "tiny", "gpt", "nothing")
    assert [listed.version(name, "bot") for name in names] == ["1", "base", "base", None, None]


def test_the_notice_before_the_first_prompt_holds_the_sentence():
    here = Endpoint("http://router", None)
    sides = tuple(Contender(name, here, name, None, None) for name in ("bot@champion", "bot@challenger"))
    session = Session(sides, votes_note=counting_sentence(DEFAULT_TERMS, "1"))
    assert "Your first 5 votes on this pair count" in welcome(session)
    session.keeps_votes = False
    assert "Your first" not in welcome(session)


@pytest.mark.store
def test_terms_are_those_that_the_training_recorded(store):
    client = MlflowClient()
    plain = register_proven(client, "bot", rows(5), right=5, policy=POLICY)
    none = register_proven(client, "bot", rows(5), right=5, policy=GatePolicy.model_validate({"votes": None}))
    assert read_terms(client, "bot", plain) == VoteTerms(VotesPolicy())
    assert not read_terms(client, "bot", none).are_read
    assert read_terms(client, "bot", "9").note, "a version that does not exist has the default terms, and a reason"
