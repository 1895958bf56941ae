"""Pairs that votes tested: numbered once, whatever is deleted later, with one error rate for all pairs of a model."""

import json

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from promote_command import promote
from proven_versions import register_proven, rows
from votes_cast import BASE_DIGEST, digest, vote

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.gate.policy import GatePolicy, VotesPolicy
from mlflow_finetune_plugin.promotion.error_rates import NumberedTest, VotePairs
from mlflow_finetune_plugin.promotion.error_rates.vote_pairs import vote_pair_key
from mlflow_finetune_plugin.store.names import LEFT_TAG, VOTE_PAIR_TAG
from mlflow_finetune_plugin.votes import Journal, Mirror
from mlflow_finetune_plugin.votes.mlflow.reading import read_votes


def read_pairs(client):
    return VotePairs.from_tags(client.get_registered_model("bot").tags)


POLICY = GatePolicy.model_validate(
    {"gain": {"metric": "exact_match"}, "votes": {"per_voter": 1, "minimum": 10, "required": True}}
)

VOTES = VotesPolicy(per_voter=1, minimum=10, required=True)


def test_a_new_pair_is_the_next_and_knows_the_discoveries_before_it():
    pairs = VotePairs.from_tags(
        {
            VOTE_PAIR_TAG + vote_pair_key("2", "1", VOTES): '{"number": 1, "discoveries": 0, "is_better": true}',
            VOTE_PAIR_TAG + vote_pair_key("2", "base", VOTES): '{"number": 4, "discoveries": 1, "is_better": false}',
            "finetune.split": "champion=90, challenger=10",
        }
    )
    assert pairs.pair("2", "1", VOTES) == pairs.pair("1", "2", VOTES) == NumberedTest(1, 0, True)
    assert pairs.pair("3", "2", VOTES) == NumberedTest(5, 1)
    assert VotePairs({}).pair("2", "1", VOTES) == NumberedTest(1, 0)


def test_how_votes_are_tested_makes_another_test_and_alpha_does_not():
    key = vote_pair_key("2", "1", VOTES)
    assert vote_pair_key("2", "1", VOTES.model_copy(update={"alpha": 0.01, "required": False})) == key
    changes = ({"per_voter": 3}, {"minimum": 12}, {"planned_voters": 30}, {"unit": "vote"}, {"closes_after_h": 1.0})
    others = [VOTES.model_copy(update=change) for change in changes]
    assert len({key, *(vote_pair_key("2", "1", other) for other in others)}) == 6


@pytest.mark.parametrize("value", ["", "3", '{"number": 1}', '{"place": 1}'])
def test_a_tag_that_was_changed_is_refused(value):
    with pytest.raises(MoveError, match=r"finetune\.vote_pair\.1-2 of the registered model is .* fix: restore it"):
        VotePairs.from_tags({f"{VOTE_PAIR_TAG}1-2": value})


@pytest.mark.store
class TestGate:
    def cast(self, tmp_path, candidate, champion, voters, choice="left"):
        journal = Journal("bot", tmp_path / f"journal-{candidate}")
        for number in range(voters):
            journal.cast(vote(f"{candidate}-{number}", choice, voter=f"v-{number}", left=candidate, right=champion))
        Mirror(journal).flush()

    def versions(self, client, count):
        held_out = rows(100)
        versions = [
            register_proven(client, "bot", held_out, right=90, policy=POLICY, adapter=digest(str(n)), base=BASE_DIGEST)
            for n in range(1, count + 1)
        ]
        client.set_registered_model_alias("bot", "champion", versions[0])
        return versions

    def test_the_gates_first_decision_numbers_a_pair_and_a_dry_run_too(self, client, tmp_path):
        first, second, third = self.versions(client, 3)
        self.cast(tmp_path, second, first, 40)
        assert promote("bot", "--version", second, "--dry-run") == 3, "votes pass, and the gain is undecided"
        tested = NumberedTest(1, 0, is_better=True)
        assert read_pairs(client).pair(second, first, VOTES) == tested
        assert promote("bot", "--version", second) == 3
        assert read_pairs(client).pair(second, first, VOTES) == tested
        self.cast(tmp_path, third, first, 3)
        promote("bot", "--version", third)
        assert read_pairs(client).pairs.keys() == {vote_pair_key(first, second, VOTES)}, "three voters decide nothing"
        assert read_pairs(client).pair(third, first, VOTES) == NumberedTest(2, 1)

    def test_deleted_votes_leave_the_numbers(self, client, tmp_path):
        first, second, third = self.versions(client, 3)
        self.cast(tmp_path, second, first, 12, "tie")
        promote("bot", "--version", second)
        for checked in read_votes("bot").votes:
            for side in (checked.vote.left, checked.vote.right):
                client.set_trace_tag(side.trace_id, LEFT_TAG, "false")
        assert read_votes("bot").votes == ()
        self.cast(tmp_path, third, first, 12, "tie")
        promote("bot", "--version", third)
        tags = client.get_registered_model("bot").tags
        assert json.loads(tags[VOTE_PAIR_TAG + vote_pair_key(first, third, VOTES)])["number"] == 2

    def test_another_votes_section_is_another_test_of_the_same_votes(self, client, tmp_path):
        first, second = self.versions(client, 2)
        self.cast(tmp_path, second, first, 10)
        (tmp_path / "rows.jsonl").write_text("")
        for per_voter in (2, 3, 4):
            gate = {"gain": {"metric": "exact_match"}, "votes": {"per_voter": per_voter, "required": True}}
            recipe = {"register": {"name": "bot", "gate": gate}, "data": {"train": "rows.jsonl"}}
            (tmp_path / "finetune.yaml").write_text(json.dumps(recipe))
            changed = ["--policy", str(tmp_path), "--accept-new-policy", "--dry-run"]
            assert promote("bot", "--version", second, *changed) == 3
        promote("bot", "--version", second)
        assert read_pairs(client).pair(second, first, VOTES).number == 4

    def test_who_may_not_change_the_model_may_still_judge(self, client, tmp_path, monkeypatch, caplog):
        first, second, _ = self.versions(client, 3)
        self.cast(tmp_path, second, first, 12, "tie")
        set_tag = MlflowClient.set_registered_model_tag

        def refuse(self, name, key, value):
            if key.startswith(VOTE_PAIR_TAG):
                raise MlflowException("not yours", error_code=PERMISSION_DENIED)
            set_tag(self, name, key, value)

        monkeypatch.setattr(MlflowClient, "set_registered_model_tag", refuse)
        assert promote("bot", "--version", second) == 3
        assert "this test has no number in the registry yet: " in caplog.text
        better = register_proven(
            client, "bot", rows(100), right=99, policy=POLICY, adapter=digest("4"), base=BASE_DIGEST
        )
        self.cast(tmp_path, better, first, 40)
        assert promote("bot", "--version", better) == 2
        assert str(client.get_model_version_by_alias("bot", "champion").version) == first
