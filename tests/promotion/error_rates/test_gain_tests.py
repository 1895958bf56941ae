"""Tests of gains share one error rate: a new candidate, champion or policy spends a part of it, the same question does not."""

import json

import pytest
from promote_command import POLICY, champion, promote, report_of
from proven_versions import register_proven, rows

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.gate.policy import GainPolicy
from mlflow_finetune_plugin.promotion.error_rates import GainTests, NumberedTest
from mlflow_finetune_plugin.store.names import GAIN_TEST_TAG


def tests_of(client):
    return GainTests.from_tags(client.get_registered_model("bot").tags).tests


def test_a_new_test_is_the_next_and_the_same_one_keeps_its_number():
    known = GainTests({})
    first = known.test("2", "1", GainPolicy())
    assert first == NumberedTest(1, 0)
    later = GainTests.from_tags({f"{GAIN_TEST_TAG}2-1-aaaaaaaa": '{"number": 3, "discoveries": 0, "is_better": true}'})
    assert later.test("3", "2", GainPolicy()) == NumberedTest(4, 1)
    assert later.test("3", "2", GainPolicy(), looks=5) == NumberedTest(8, 1), "the best of five takes five numbers"


def test_what_the_gain_must_show_makes_another_test_and_alpha_does_not(tmp_path):
    from mlflow_finetune_plugin.promotion.error_rates.gain_tests import gain_test_key

    key = gain_test_key("2", "1", GainPolicy())
    assert gain_test_key("2", "1", GainPolicy(alpha=0.01)) == key
    others = (GainPolicy(metric="f1"), GainPolicy(at_least=0.1), GainPolicy(over="base"), GainPolicy(through="serving"))
    assert len({key, *(gain_test_key("2", "1", other) for other in others)}) == 5


def test_a_tag_that_was_changed_is_refused():
    with pytest.raises(MoveError, match=r"finetune\.gain_test\.2-1-ab of the registered model is .* fix: restore it"):
        GainTests.from_tags({f"{GAIN_TEST_TAG}2-1-ab": "3"})


@pytest.mark.store
class TestGate:
    def test_each_candidate_needs_more_and_a_discovery_gives_back(self, client):
        held_out = rows(100)
        first = register_proven(client, "bot", held_out, right=50, policy=POLICY)
        client.set_registered_model_alias("bot", "champion", first)
        parts = []
        for right in (50, 51, 60):
            register_proven(client, "bot", held_out, right=right, policy=POLICY)
            promote("bot")
            (gain,) = report_of(client)["verdict"]["findings"]
            parts.append((1 - gain["details"]["confidence"]) / 2)
        assert parts == pytest.approx([0.0152, 0.0038, 0.00169], rel=0.01)
        assert [test.is_better for test in tests_of(client).values()] == [False, False, True]
        assert champion(client) == "4"
        register_proven(client, "bot", held_out, right=70, policy=POLICY)
        promote("bot")
        (gain,) = report_of(client)["verdict"]["findings"]
        assert gain["details"] | {"test_number": 4, "discoveries": 1} == gain["details"]
        assert "test 4 of this model (99.62 % interval)" in gain["reason"]

    def test_a_gain_that_one_test_shows_is_not_enough_for_the_luckiest_of_many(self, client):
        held_out = rows(100)
        first = register_proven(client, "bot", held_out, right=50, policy=POLICY)
        client.set_registered_model_alias("bot", "champion", first)
        for _ in range(3):
            register_proven(client, "bot", held_out, right=50, policy=POLICY)
            assert promote("bot") == 3
        register_proven(client, "bot", held_out, right=58, policy=POLICY)
        assert promote("bot") == 3, "eight of eight is one in 256, the fourth test may err once in 1,053"

    def test_the_same_question_spends_nothing_and_a_dry_run_counts(self, client, capsys):
        held_out = rows(100)
        first = register_proven(client, "bot", held_out, right=50, policy=POLICY)
        client.set_registered_model_alias("bot", "champion", first)
        register_proven(client, "bot", held_out, right=51, policy=POLICY)
        for arguments in (["--dry-run"], [], ["--dry-run"]):
            assert promote("bot", *arguments) == 3
            assert "test 1 of this model" in capsys.readouterr().out
        assert len(tests_of(client)) == 1

    def test_a_dry_run_under_another_policy_is_another_test(self, client, tmp_path, capsys):
        held_out = rows(100)
        first = register_proven(client, "bot", held_out, right=50, policy=POLICY)
        client.set_registered_model_alias("bot", "champion", first)
        register_proven(client, "bot", held_out, right=57, policy=POLICY)
        for number, bound in enumerate((0.3, 0.2, 0.1), 1):
            project = tmp_path / f"p{number}"
            project.mkdir()
            gate = {"gain": {"metric": "exact_match", "at_least": bound}}
            recipe = {"register": {"name": "bot", "gate": gate}, "data": {"train": "rows.jsonl"}}
            (project / "finetune.yaml").write_text(json.dumps(recipe))
            (project / "rows.jsonl").write_text("")
            assert promote("bot", "--policy", str(project), "--accept-new-policy", "--dry-run") in (3, 4)
            assert f"test {number} of this model" in capsys.readouterr().out
        assert promote("bot") == 3, "seven of seven is one in 128"

    def test_the_best_of_several_versions_takes_a_number_for_each(self, client, capsys):
        for right in (60, 70, 65):
            register_proven(client, "bot", rows(100), right=right, base_right=50, policy=POLICY, metrics=score(right))
        assert promote("bot") == 0
        assert "test 3 of this model" in capsys.readouterr().out
        assert champion(client) == "2"


def score(right):
    return {"eval/adapter/exact_match": right / 100}
