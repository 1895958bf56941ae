"""The report on a model's votes as a Python function."""

import json

import pytest
from votes_cast import vote

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.votes import Mirror, read_preferences, report_votes
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces


def test_a_report_counts_the_votes_and_prints_nothing(ledger, capsys):
    ledger.cast(vote(1, "right"), vote(2, "right", voter="v-2"), vote(3, "tie"))
    report = report_votes("bot")
    assert report.counts == {("1", "2"): 3}
    assert (report.people.candidate, report.people.candidate_wins, report.people.ties) == ("2", 2, 1)
    assert "2 preferred      2" in report.text()
    assert json.loads(json.dumps(report.to_dict()))["people"]["candidate_wins"] == 2
    assert capsys.readouterr() == ("", "")


def test_versions_and_the_base_are_named_as_the_caller_likes(ledger):
    ledger.cast(vote(1, "right"))
    assert report_votes("bot", ("champion", "2")).people.champion_wins == 1
    assert report_votes("bot", ("2", "base")).people.votes == 0
    for between in (("1", "champion"), ("1", "99"), ("1", "champ")):
        with pytest.raises(ConfigError, match="fix: "):
            report_votes("bot", between)
    with pytest.raises(ConfigError, match="did you mean bot"):
        report_votes("bit")


def test_a_model_without_both_aliases_has_no_pair_and_says_why(ledger):
    client = VoteTraces("bot").client
    client.delete_registered_model_alias("bot", "champion")
    report = report_votes("bot")
    assert (report.people.candidate, report.people.champion) == ("2", "base")
    client.delete_registered_model_alias("bot", "challenger")
    report = report_votes("bot")
    assert report.people is None
    assert "bot has no challenger and no champion" in report.text()


def test_preferences_are_read_from_mlflow(ledger):
    ledger.journal.cast(vote(1, "right"))
    Mirror(ledger.journal).flush()
    (row,) = read_preferences("bot").rows
    assert row.row().keys() == {"prompt", "chosen", "rejected"}
