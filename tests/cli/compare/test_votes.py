"""``mlflow-finetune votes`` as a shell runs it."""

import json
import shutil

import pytest
from chat_endpoint import Endpoint, prefers_longer
from votes_cast import receipt, spoken, vote

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.votes import Mirror
from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog

pytestmark = pytest.mark.store


@pytest.fixture
def say(capsys, ledger):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def say(*arguments):
        code = main(["votes", *arguments])
        return (code, *capsys.readouterr())

    return say


def cast_some(ledger):
    for number in range(12):
        winner = "right" if number < 9 else "left"
        ledger.journal.cast(vote(number, winner, voter=f"v-{number % 4}", answers=(f"no {number}", f"yes! {number}")))
    ledger.journal.cast(vote(20, "tie"))
    ledger.journal.cast(vote(21, left="2", right="2"))


def test_nobody_has_voted(say):
    code, out, _ = say("bot")
    assert code == 0
    assert "bot: no votes yet" in out
    assert "none between these two" in out


def test_the_table_says_what_was_cast(say, ledger):
    cast_some(ledger)
    code, out, err = say("bot")
    assert code == 0
    assert "14 votes of this host brought to MLflow" in err
    for part in (
        "bot: 14 votes in MLflow, 13 count",
        "1: the same version on both sides",
        "bot: 2 against 1, people",
        "votes            13 by 4 voters",
        "2 preferred      9",
        "1 preferred      3",
        "tie              1",
        "75.0% (95 % CI 46.8% to 91.1%) of 12 decisive votes for 2",
        "left answer      won 3 of 12, 25.0%",
        "longer answer    won 9 of 12",
    ):
        assert part in out, (part, out)


def test_json_says_the_same(say, ledger):
    cast_some(ledger)
    code, out, _ = say("bot", "--json", "--between", "champion", "2")
    report = json.loads(out)
    assert code == 0
    assert (report["people"]["candidate"], report["people"]["candidate_wins"], report["people"]["votes"]) == (
        "1",
        3,
        13,
    )
    assert report["people"]["win_rate"]["value"] == 0.25
    assert report["not_counted"] == {"the same version on both sides": 1}


def test_the_base_stands_in_for_a_missing_alias_and_the_other_pairs_are_named(say, ledger):
    cast_some(ledger)
    client = VoteTraces("bot").client
    client.delete_registered_model_alias("bot", "champion")
    code, out, _ = say("bot")
    assert code == 0
    assert "bot: 2 against base, people" in out
    assert "13 votes; show them: --between 1 2" in out
    client.delete_registered_model_alias("bot", "challenger")
    out = say("bot")[1]
    assert "bot has no challenger and no champion" in out
    assert "13 votes; show them: --between 1 2" in out


def test_a_champion_that_is_the_challenger_too_is_compared_with_the_base(say, ledger):
    VoteTraces("bot").client.set_registered_model_alias("bot", "champion", "2")
    code, out, _ = say("bot")
    assert code == 0
    assert "bot: 2 against base, people" in out


def test_votes_against_the_base_are_shown(say, ledger):
    cast = vote(1, "right")
    left = type(cast.sides[0])(receipt("base", "r-1", model="tiny"), "x", None, "left")
    ledger.journal.cast(type(cast)(cast.turn, (left, cast.sides[1]), "right", "v-1"))
    assert "2 preferred      1" in say("bot", "--between", "2", "base")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bit",), "did you mean bot?"),
        (("bot", "--between", "1", "champion"), "are both bot/1"),
        (("bot", "--between", "1", "99"), "version or alias of bot"),
        (("bot", "--between", "1", "champ"), "did you mean champion?"),
        (("bot", "--judge", "http://x/v1"), "--judge and --judge-model: belong together"),
        (("bot", "--judge-prompts", "p.jsonl"), "--judge-prompts and --router: belong together"),
        (("bot", "--forget", "alice", "--export", "x.jsonl"), "deletion cannot be combined with --import"),
        (("bot", "--forget", "alice"), "only the host where votes were cast"),
        (("bot", "--import", "nowhere.csv"), "cannot be read"),
    ],
)
def test_faults_are_told(say, ledger, arguments, message):
    shutil.rmtree(ledger.journal.folder)
    code, out, err = say(*arguments)
    assert (code, out) == (2, "")
    assert message in err, err


def test_export_tells_what_it_left_out(say, ledger, tmp_path):
    cast_some(ledger)
    code, _, err = say("bot", "--export", str(tmp_path / "dpo.jsonl"))
    assert code == 0
    assert "13 preference rows, what they rest on in dpo.meta.jsonl" in err
    assert "left out 1: tie or both bad" in err
    assert len((tmp_path / "dpo.jsonl").read_text().splitlines()) == 13


def test_import_casts_and_tells(say, ledger, tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("turn_id,prompt,left_answer,right_answer,choice,voter\nt-1,hi,a,b,left,alice\n")
    code, out, err = say("bot", "--import", str(path))
    assert code == 0
    assert "1 votes cast, 0 known before; 1 without two receipts will never count" in err
    assert "1: without two receipts" in out


def test_a_judge_is_shown_beside_people(say, ledger):
    cast_some(ledger)
    with Endpoint(prefers_longer) as endpoint:
        code, out, err = say("bot", "--judge", endpoint.url, "--judge-model", "big")
    assert code == 0
    assert "judge:big: 13 of 13 pairs judged alike in both orders, 100.0% of those with two verdicts" in err
    assert "votes            13 by 4 voters" in out
    assert "judge:big, a judge, not counted with people" in out
    assert "agrees           with most people on 9 of 12 turns" in out


def test_a_judge_compares_two_served_models_on_prompts(say, ledger, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n')

    def answer(body):
        version = body["model"].split("/")[1]
        version_receipt = receipt(version, f"req-{len(router.asked)}")
        headers = {f"x-finetune-{key.replace('_', '-')}": value for key, value in vars(version_receipt).items()}
        return {"text": "long answer" if version == "2" else "short", "headers": headers}

    with Endpoint(answer) as router, Endpoint(prefers_longer) as endpoint:
        code, out, _ = say(
            "bot", "--judge", endpoint.url, "--judge-model", "big", "--router", router.url,
            "--judge-prompts", str(tmp_path / "p.jsonl"),
        )  # fmt: skip
    assert code == 0
    assert "2 preferred      2" in out
    assert "none between these two" in out  # people have not voted


def test_forgetting_is_a_command(say, ledger):
    ledger.journal.cast(vote(1, voter=ledger.journal.voter("alice")))
    Mirror(ledger.journal).flush()
    code, out, _ = say("bot", "--forget", "alice")
    assert code == 0
    assert "deleted 1 lines of this host's journal, 2 traces and 0 votes" in out
    ledger.journal.cast(vote(2))
    Mirror(ledger.journal).flush()
    assert "deleted 1 lines" in say("bot", "--forget-session", "s-v-1")[1]
    ledger.journal.cast(vote(3))
    assert "deleted 1 lines" in say("bot", "--delete-older-than", "0")[1]
    assert "no votes yet" in say("bot")[1]


def test_turns_nobody_voted_on_are_deleted_by_a_command(say, ledger):
    log = TurnLog(ledger.journal)
    log.start()
    for number in (1, 2):
        log.note(vote(number).turn, spoken(vote(number)), "v-1")
    assert log.flush(60)
    log.stop()
    ledger.journal.cast(vote(1))  # not mirrored yet
    code, out, _ = say("bot", "--delete-unvoted-older-than", "0")
    assert code == 0
    assert "deleted 0 lines of this host's journal, 2 traces and 0 votes" in out
    assert "bot: 1 vote in MLflow, 1 count" in say("bot")[1]
    assert say("bot", "--delete-unvoted-older-than", "-1")[0] == 2
