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


def proven(client, right, **more):
    metrics = {"eval/adapter/exact_match": right / 100}
    return register_proven(client, "bot", rows(100), right=right, policy=POLICY, metrics=metrics, **more)


def test_without_a_champion_the_best_version_on_the_same_rows_is_judged(client, capsys):
    """The newest version was compared with the base alone, and passed a better one that nobody had promoted yet."""
    best = proven(client, 93)
    newest = proven(client, 39)
    assert promote("bot") == 0
    assert champion(client) == best
    assert (
        capsys.readouterr()
        .err.lstrip()
        .startswith(
            f"version {best} was chosen, because no version is champion yet, and version {best} did better on the same held-out "
            f"rows: exact_match 0.93, version {newest} 0.39\n"
        )
    )
    assert promote("bot") == 4, "the challenger is judged against the champion"
    assert promote("bot", "--version", newest) == 4


def test_the_challenger_is_judged_and_a_better_version_on_the_same_rows_is_named(client, capsys):
    assert promote("bot", "--version", proven(client, 40)) == 0
    better = proven(client, 90)
    proven(client, 95, base="c" * 64)
    register_proven(client, "bot", rows(99), right=99, policy=POLICY, metrics={"eval/adapter/exact_match": 1.0})
    newest = proven(client, 70)
    capsys.readouterr()
    assert promote("bot") == 0
    printed = capsys.readouterr()
    assert f"version {newest} was chosen, because it is the challenger" in printed.err
    note = (
        f"version {better} did better on the same held-out rows: exact_match 0.9, version {newest} 0.7; "
        f"to judge it: mlflow-finetune promote bot --version {better}"
    )
    assert note in printed.out
    assert note in report_of(client)["notes"]
    assert champion(client) == newest
    assert promote("bot", "--version", better) == 0
    assert "did better" not in capsys.readouterr().out, "the user chose the version"
    proven(client, 80)
    assert promote("bot") == 4
    assert "did better" not in capsys.readouterr().out, "versions that were champion are not named again"


@pytest.mark.parametrize("model", ["bot/1", "bot@trial", "models:/bot/1", "models:/bot@trial"])
def test_the_name_may_hold_the_version(client, model):
    register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    register_proven(client, "bot", rows(50), right=50, policy=POLICY)
    client.set_registered_model_alias("bot", "trial", "1")
    assert promote(model) == 0
    assert champion(client) == "1"
