"""A champion is judged by what MLflow holds of it, again and again, and goes only where it is said to. Real stores, real runs."""

import asyncio
import json
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from proven_versions import RIGHT, register_proven, rows
from routers_told import told_latencies
from votes_cast import BASE_DIGEST, digest, vote

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.config.sections import DataSettings
from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.promotion.evidence.answers import Sources
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.promotion.moves.move import promote_version, roll_back
from mlflow_finetune_plugin.serving.router.served_log import ServedLog
from mlflow_finetune_plugin.store.names import SERVED_TAG
from mlflow_finetune_plugin.store.registered_model import read_model
from mlflow_finetune_plugin.store.served_tags import LatencySummary, ServedSummary, served
from mlflow_finetune_plugin.votes import Journal, Mirror
from mlflow_finetune_plugin.watch.check import check
from mlflow_finetune_plugin.watch.check_run import record_check
from mlflow_finetune_plugin.watch.request import Watch
from mlflow_finetune_plugin.watch.target import find_watched

pytestmark = pytest.mark.store

POLICY = GatePolicy.model_validate(
    {
        "gain": {"metric": "exact_match"},
        "latency": {"p95_ms": 100, "over_champion": 1.5},
        "votes": {"per_voter": 1},
    }
)


def promote(client, version, over):
    evidence = MoveEvidence("promote", "d" * 64, "a test's own", champion=over)
    return promote_version(client, "bot", version, evidence=evidence)


@pytest.fixture
def pair(client):
    """Version 2 is champion, version 1 previous; on the rows of both, 1 answers 50 of 100 rightly and 2 answers 90."""
    asked = rows(100)
    for number, right in (("1", 50), ("2", 90)):
        register_proven(client, "bot", asked, right=right, policy=POLICY, adapter=digest(number), base=BASE_DIGEST)
        promote(client, number, None if number == "1" else "1")
    return client


def tell(client, version, answers, failed, *, p95_ms=50.0, router="here-8000", begun=1.0):
    now = time.time()
    recent = LatencySummary(min(answers - failed, 1000), p95_ms / 2, p95_ms, now - 60, now)
    client.set_model_version_tag(
        "bot",
        version,
        f"{SERVED_TAG}{router}",
        ServedSummary(begun, answers, failed, recent, told_latencies(answers - failed, p95_ms)).to_json(),
    )


def watch(*arguments):
    return main(["watch", "bot", *arguments])


def last_look(client):
    experiment = client.get_experiment_by_name("bot.promotions").experiment_id
    run = client.search_runs([experiment], "tags.`finetune.watch.outcome` LIKE '%'", max_results=1)[0]
    return run, json.loads(Path(client.download_artifacts(run.info.run_id, "verdict.json")).read_text())


def findings(client):
    return {one["name"]: one for one in last_look(client)[1]["verdict"]["findings"]}


def aliases(client):
    found = read_model(client, "bot")[0]
    return found["champion"], found["previous"]


def test_a_champion_that_is_fine_is_kept_and_the_look_is_in_mlflow(pair, capsys):
    tell(pair, "2", 1000, 4)
    tell(pair, "1", 1000, 4, p95_ms=45.0)
    before = history(pair, "bot")
    assert watch() == 0
    said = capsys.readouterr().out
    assert "keep          proof: exact_match over the previous version 0.4 [" in said
    assert "keep          errors: 4 of 1,000 answers failed" in said
    assert "not measured  votes: no votes between versions 2 and 1 since the promotion" in said
    run, told = last_look(pair)
    assert (run.info.status, run.data.tags["finetune.watch.outcome"]) == ("FINISHED", "keep")
    assert run.info.run_name == "watch 2: keep"
    assert {name: one["outcome"] for name, one in findings(pair).items()} == {
        "proof": "keep",
        "errors": "keep",
        "latency p95": "keep",
        "latency over previous": "not measured",
        "votes": "not measured",
        "drift of votes": "not measured",
    }
    assert run.data.metrics["watch/proof"] == pytest.approx(0.4)
    assert run.data.metrics["watch/errors/answers"] == 1000
    assert run.data.metrics["watch/latency p95/p95_ms"] == pytest.approx(50, rel=0.02)
    assert told["verdict"]["outcome"] == "keep"
    page = Path(pair.download_artifacts(run.info.run_id, "report.html")).read_text()
    assert page.count("data:image/png;base64,") == 1
    assert pair.get_model_version("bot", "2").tags["finetune.watch"].endswith(f"run {run.info.run_id}")
    assert history(pair, "bot") == before, "a look is no move"


def test_failures_roll_back_once_and_only_where_told_to(pair, capsys):
    tell(pair, "2", 200, 30)
    assert watch() == 4
    assert aliases(pair) == ("2", "1")
    assert "next          mlflow-finetune rollback bot" in capsys.readouterr().out
    assert watch("--act") == 4
    assert aliases(pair) == ("1", "2")
    assert "rolled back   bot: champion 2 -> 1, previous is 2" in capsys.readouterr().out
    run, _ = last_look(pair)
    newest = history(pair, "bot")[0]
    assert (newest.kind, newest.run_id) == ("rollback", run.data.tags["finetune.watch.move_run"])
    assert newest.reason.startswith(f"watch, run {run.info.run_id}: errors: 30 of 200 answers failed")
    assert pair.get_model_version("bot", "2").tags["finetune.watch"].startswith("roll back, rolled back, ")
    tell(pair, "1", 200, 30)
    assert watch("--act") == 3, "two versions do not take turns"
    assert aliases(pair) == ("1", "2")
    assert "it cannot be rolled back, version 2, the previous one, was rolled back itself on" in capsys.readouterr().out


def count(client, answers):
    """Let a router count answers of the champion and report them: (milliseconds or None for a failure, API key)."""

    async def report():
        log = ServedLog(client, 8000, every_s=0.01)
        for took_ms, key in answers:
            log.note("bot", "2", took_ms, None, key)
        task = asyncio.create_task(log.run())
        while not served(client.get_model_version("bot", "2").tags, "bot/2"):
            await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(report())


@pytest.mark.bad_input
def test_failures_of_one_key_roll_nothing_back(pair, capsys):
    count(pair, [(50.0, f"key {number % 5}") for number in range(100)] + [(None, "hostile")] * 200)
    assert watch("--act") == 0
    assert aliases(pair) == ("2", "1")
    output = capsys.readouterr().out
    assert "errors: 1 of 101 answers failed" in output
    assert "200 failures of one API key count as one" in output


@pytest.mark.parametrize("keys", [("a", "b", "c"), (None,)], ids=["three keys", "one client"])
def test_failures_of_several_keys_or_of_the_only_client_roll_back(pair, keys):
    count(
        pair,
        [(50.0, keys[number % len(keys)]) for number in range(100)] + [(None, key) for key in keys for _ in range(30)],
    )
    assert watch("--act") == 4
    assert aliases(pair) == ("1", "2")


def test_a_champion_that_is_worse_than_one_rolled_back_from_is_no_champion_to_keep(pair, capsys):
    roll_back(pair, "bot")
    assert watch("--act") == 3
    assert findings(pair)["proof"]["outcome"] == "roll back"
    assert "previous is version 2, which was rolled back itself" in capsys.readouterr().out
    assert aliases(pair) == ("1", "2")
    roll_back(pair, "bot")
    assert watch() == 0, "the rollback was undone"


def test_an_engine_that_fails_for_both_is_no_reason_to_go_back(pair):
    for version in ("1", "2"):
        tell(pair, version, 200, 30)
    assert watch("--act") == 0
    assert "going back would not help" in findings(pair)["errors"]["reason"]


def test_counts_go_on_where_a_router_begins_anew(pair):
    tell(pair, "2", 100, 1)
    assert watch() == 0
    tell(pair, "2", 40, 1, begun=2.0)
    assert watch() == 0
    found = findings(pair)["errors"]["details"]
    assert (found["answers"], found["failed"]) == (140, 2)


def test_a_worse_champion_goes_back_by_proof_and_a_slow_one_by_its_own_policy(pair):
    pair.set_registered_model_alias("bot", "champion", "1")
    pair.set_registered_model_alias("bot", "previous", "2")
    assert watch() == 4
    assert "the previous one is better" in findings(pair)["proof"]["reason"]
    pair.set_registered_model_alias("bot", "champion", "2")
    pair.set_registered_model_alias("bot", "previous", "1")
    for version in ("2", "1"):
        tell(pair, version, 1000, 0, p95_ms=60.0)
    assert watch() == 0
    for version, p95_ms in (("2", 99.0), ("1", 60.0)):
        tell(pair, version, 1000, 0, p95_ms=p95_ms, begun=2.0)
    assert watch() == 4
    assert {name: one["outcome"] for name, one in findings(pair).items() if name.startswith("latency")} == {
        "latency p95": "keep",
        "latency over previous": "roll back",
    }


def test_people_s_votes_since_it_became_champion_count_and_those_before_are_what_it_drifts_from(pair):
    journal, since = Journal("bot"), find_watched(pair, "bot").since
    for number in range(14):
        journal.cast(vote(number, "right", voter=f"v-{number}", cast_at=since - timedelta(hours=1)))
    for number in range(14, 28):
        journal.cast(vote(number, "left", voter=f"v-{number}", cast_at=since + timedelta(hours=1)))
    Mirror(journal).flush()
    assert watch() == 4
    found = findings(pair)
    assert found["votes"]["outcome"] == "roll back"
    assert found["votes"]["details"]["wins"] == 14
    assert found["drift of votes"]["outcome"] == "re-tune"
    assert "lost or both bad in 1 [" in found["drift of votes"]["reason"]


def test_what_is_known_of_nothing_is_said_and_nothing_is_done(client, capsys):
    first = register_proven(client, "bot", None, right=0, trained_on=None)
    client.set_registered_model_alias("bot", "champion", first)
    client.set_model_version_tag("bot", first, f"{SERVED_TAG}broken", "{}")
    assert watch("--act", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["reason"] for one in told["verdict"]["findings"]} == {
        "proof": f"models:/bot/{first}: its run recorded no held-out rows",
        "errors": f"models:/bot/{first}: tag finetune.served.broken: is not a summary of answers: 'recent'; fix: delete the tag",
        "latency": "the champion's policy asks nothing of it",
        "votes": "there is no previous version",
        "drift of votes": "there is no previous version",
    }
    assert told["previous"] is None


def test_a_champion_that_moved_since_the_look_is_not_rolled_back(pair):
    tell(pair, "2", 200, 30)
    sources = Sources(answerer=lambda version: pytest.fail("all is known"))
    seen = check(pair, find_watched(pair, "bot"), WatchPolicy(), lambda: None, sources, lambda text: None)
    assert seen.verdict.outcome == "roll back"
    third = register_proven(pair, "bot", rows(100), right=95, policy=POLICY)
    promote(pair, third, "2")
    with pytest.raises(MoveError, match="fix: judge again"):
        record_check(pair, seen, sources, has_effect=True)
    assert aliases(pair) == (third, "2")
    assert last_look(pair)[0].info.status == "FAILED"


def test_the_policy_of_a_project_holds(pair, tmp_path, capsys):
    tell(pair, "2", 200, 30)
    recipe = tmp_path / "project" / "finetune.yaml"
    recipe.parent.mkdir()
    recipe.write_text("register: {name: bot, watch: {errors: {at_most: 0.2}}}")
    assert watch("--policy", "project") == 0
    assert last_look(pair)[1]["policy"]["errors"]["at_most"] == 0.2
    recipe.write_text("register: {name: bot, watch: {errors: {at_mots: 0.2}, drfit: {}}}")
    assert watch("--policy", "project") == 2
    said = capsys.readouterr().err
    assert "unknown key register.watch.errors.at_mots (= 0.2); did you mean register.watch.errors.at_most?" in said
    assert "unknown key register.watch.drfit (= {}); did you mean register.watch.drift?" in said
    recipe.write_text("register: {name: bot, watch: {errors: {at_most: 7}}}")
    assert watch("--policy", "project") == 2
    assert "register.watch.errors.at_most = 7: expected number at least 1e-05 and below 0.5" in capsys.readouterr().err


def test_new_rows_are_read_as_the_training_read_its_rows_unless_the_policy_s_recipe_says_how(
    pair, tmp_path, monkeypatch
):
    data = {"train": "old.csv", "columns": {"prompt": "ask", "completion": "say"}, "overlength": "drop"}
    settings = DataSettings.model_validate({**data, "layout": "prompt_completion"})
    run_id = pair.get_model_version("bot", "2").run_id
    pair.log_text(run_id, json.dumps({"data": settings.model_dump(mode="json")}), "finetune/config.json")
    (tmp_path / "new.csv").write_text("ask,say,ask_again\nwho?,me,why?\n")
    recipe = tmp_path / "project" / "finetune.yaml"
    recipe.parent.mkdir()
    readings = []

    class Reader:
        def rows(self, config, folder):
            readings.append((config.data.layout, config.data.columns, config.data.overlength, config.data.eval[0].path))
            return rows(20, "new.csv")

        def answer(self, questions, max_new_tokens):
            return AnswerSet([RIGHT] * len(questions), np.full(len(questions), 2.0))

    monkeypatch.setattr(Watch, "_answerer", lambda self, uri: Reader())
    as_trained = ("prompt_completion", data["columns"], "drop", str(tmp_path / "new.csv"))
    assert watch("--data", "new.csv") in (0, 3)
    recipe.write_text("data: old.csv\nregister: {name: bot, watch: {errors: {at_most: 0.2}}}")
    assert watch("--data", "new.csv", "--policy", "project") in (0, 3)
    assert readings == [as_trained] * 2
    recipe.write_text(
        "data: {columns: {prompt: ask_again, completion: say}}\nregister: {name: bot, watch: {errors: {at_most: 0.2}}}"
    )
    assert watch("--data", "new.csv", "--policy", "project") in (0, 3)
    recipe.write_text("data: {columns: {prompt: ask_again, completion: say}}")  # named for its columns alone
    assert watch("--data", "new.csv", "--policy", "project") in (0, 3)
    as_named = ("auto", {"prompt": "ask_again", "completion": "say"}, "error", str(tmp_path / "new.csv"))
    assert readings[2:] == [as_named] * 2


def test_looks_come_again_and_a_fault_of_one_ends_none(pair, capsys):
    """At the second look the champion is gone; a third would come."""
    looks = []

    def told():
        looks.append(capsys.readouterr())
        pair.delete_registered_model_alias("bot", "champion")

    assert watch("--every", "1s", "--times", "1", "--json") == 0
    told()
    assert watch("--every", "1s", "--times", "2", "--json") == 2
    told = capsys.readouterr()
    assert json.loads(looks[0].out)["verdict"]["outcome"] == "keep"
    assert told.err.count("there is nothing to watch") == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--times", "2"), "counts the checks of --every"),
        (("--every", "1m", "--times", "0"), "counts the checks of --every"),
        (("--policy", "."), "has neither register.watch nor data.layout or data.columns"),
        (("--data", "gone.jsonl"), "gone.jsonl"),
    ],
)
def test_bad_requests_are_one_message(client, capsys, arguments, said):
    first = register_proven(client, "bot", None, right=0)
    client.set_registered_model_alias("bot", "champion", first)
    assert watch(*arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert "fix:" in told
    assert client.get_experiment_by_name("bot.promotions") is None


def test_a_model_without_a_champion_is_one_message(client, capsys):
    register_proven(client, "bot", None, right=0)
    for name, said in (("bot", "there is nothing to watch"), ("nobody", "no registered model 'nobody'")):
        assert main(["watch", name]) == 2
        assert said in capsys.readouterr().err
    assert watch("--every", "soon") == 2
    assert "'soon' is no" in capsys.readouterr().err
