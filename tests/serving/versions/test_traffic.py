from collections import Counter

import pytest

from mlflow_finetune_plugin.serving.versions.traffic import Traffic, read_traffic

ALIASES = {"champion": "1", "challenger": "2", "canary": "3"}


def test_tags_as_written():
    traffic = read_traffic({"finetune.split": "champion=90, challenger = 10", "finetune.shadow": "canary"}, ALIASES)
    assert traffic == Traffic({"champion": 90.0, "challenger": 10.0}, {"canary": 1.0})
    assert read_traffic({}, ALIASES) == Traffic()


@pytest.mark.parametrize(
    "tag", ["champion=-1", "champion=nan", "champion=inf", "champion=a lot", "champion=1,challenger="]
)
def test_a_wrong_tag_is_told_and_counts_as_absent(tag):
    traffic = read_traffic({"finetune.split": tag}, ALIASES)
    assert not traffic.split
    (problem,) = traffic.problems
    assert "is not a valid weight; fix: champion=90, challenger=10" in problem


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("champion:90, challenger:10", "no alias 'champion:90'"),
        ("90,10", "no alias '90'"),
        ("champoin=90", "no alias 'champoin', the model has: canary, challenger, champion"),
        ("@champion=90", "no alias '@champion'"),
        ("champion=0", "all weights are 0"),
    ],
)
def test_a_split_of_nobody_is_told(tag, said):
    traffic = read_traffic({"finetune.split": tag}, ALIASES)
    assert not traffic.split
    assert said in traffic.problems[0]
    assert "fix: champion=90, challenger=10" in traffic.problems[0]


@pytest.mark.parametrize("tag", ["challenger:0.1", "chalenger=0.1", "challenger=10%"])
def test_a_shadow_of_nobody_is_told(tag):
    traffic = read_traffic({"finetune.shadow": tag}, ALIASES)
    assert not traffic.shadow
    assert "fix: challenger=0.1" in traffic.problems[0]


def test_a_shadow_cannot_be_more_than_every_request():
    assert read_traffic({"finetune.shadow": "canary=2"}, ALIASES).problems


def test_a_bare_name_is_the_champion_and_never_an_unproven_challenger():
    """Version 0.1 let the newest version answer while there was no champion, whatever its proof said."""
    assert Traffic().choose("bot", ALIASES, None) == "champion"
    assert Traffic().choose("bot", {"challenger": "2"}, None) is None
    assert Traffic({"challenger": 1}).choose("bot", {"challenger": "2"}, None) == "challenger", (
        "by a split that somebody set"
    )


def test_weights_are_kept_over_many_users():
    traffic = Traffic({"champion": 90, "challenger": 10})
    chosen = Counter(traffic.choose("bot", ALIASES, f"user {n}") for n in range(20_000))
    assert set(chosen) == {"champion", "challenger"}
    assert chosen["challenger"] / 20_000 == pytest.approx(0.1, abs=0.01)
    chosen = Counter(traffic.choose("bot", ALIASES, None) for _ in range(20_000))
    assert chosen["challenger"] / 20_000 == pytest.approx(0.1, abs=0.01)


def test_a_user_stays_and_moves_only_as_far_as_the_weights():
    users = [f"user {n}" for n in range(2000)]
    before, after = Traffic({"champion": 90, "challenger": 10}), Traffic({"champion": 80, "challenger": 20})
    first = [before.choose("bot", ALIASES, user) for user in users]
    assert first == [before.choose("bot", ALIASES, user) for user in users]
    second = [after.choose("bot", ALIASES, user) for user in users]
    assert all(new == "challenger" for old, new in zip(first, second, strict=True) if old == "challenger")


def test_who_answers_without_a_split():
    assert Traffic().choose("bot", ALIASES, None) == "champion"
    assert Traffic().choose("bot", {"other": "2"}, None) is None
    assert Traffic({"gone": 1}).choose("bot", ALIASES, "u") == "champion"
