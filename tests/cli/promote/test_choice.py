"""Which version ``promote`` judges, and what it says of those that it does not."""

import json

import pytest
from promote_command import POLICY, champion, promote, report_of
from proven_versions import register_proven, rows

from mlflow_finetune_plugin.promotion.moves.audit import history

pytestmark = pytest.mark.store


def test_what_is_champion_already_is_success_and_moves_nothing(client, capsys):
    first = register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    assert promote("bot") == 0
    before = history(client, "bot")
    for arguments in (["bot"], ["bot", "--version", f"0{first}"], [f"models:/bot/{first}"], ["bot", "--dry-run"]):
        capsys.readouterr()
        assert promote(*arguments) == 0
        assert capsys.readouterr().out == f"already champion: bot version {first}; nothing was judged or moved\n"
    assert promote("bot", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["verdict"]["outcome"], result["move"]) == ("unchanged", None)
    assert result["verdict"]["reason"] == f"version {first} is already champion"
    assert history(client, "bot") == before


def test_the_challenger_is_judged_and_a_better_version_on_the_same_rows_is_named(client, capsys):
    def proven(right, **more):
        metrics = {"eval/adapter/exact_match": right / 100}
        return register_proven(client, "bot", rows(100), right=right, policy=POLICY, metrics=metrics, **more)

    better = proven(90)
    proven(95, base="c" * 64)
    register_proven(client, "bot", rows(99), right=99, policy=POLICY, metrics={"eval/adapter/exact_match": 1.0})
    newest = proven(70)
    assert promote("bot") == 0
    printed = capsys.readouterr()
    assert f"version {newest} was chosen, because it is the challenger" in printed.err
    note = (
        f"version {better} did better on the same held-out rows: exact_match 0.9, version {newest} 0.7; "
        f"to judge it: mlflow-finetune promote bot --version {better}"
    )
    assert note in printed.out
    assert report_of(client)["notes"] == [note]
    assert champion(client) == newest
    assert promote("bot", "--version", better) == 0
    assert "did better" not in capsys.readouterr().out, "the user chose the version"
    proven(80)
    assert promote("bot") == 4
    assert "did better" not in capsys.readouterr().out, "versions that were champion are not named again"


@pytest.mark.parametrize("model", ["bot/1", "bot@trial", "models:/bot/1", "models:/bot@trial"])
def test_the_name_may_hold_the_version(client, model):
    register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    register_proven(client, "bot", rows(50), right=50, policy=POLICY)
    client.set_registered_model_alias("bot", "trial", "1")
    assert promote(model) == 0
    assert champion(client) == "1"
