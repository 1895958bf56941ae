"""A canary against a real registry. What routers tell is written as they would write it (``tests/serving`` has a real one)."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from alias_moves import evidence
from conftest import wait_for
from proven_versions import register_proven, rows
from routers_told import ToldRouter, telling

from mlflow_finetune_plugin.cli.main import main
from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.moves.audit import history, now, promotions_experiment
from mlflow_finetune_plugin.promotion.moves.canary_state import CanaryState
from mlflow_finetune_plugin.promotion.moves.move import promote_version
from mlflow_finetune_plugin.promotion.moves.settlement import settle
from mlflow_finetune_plugin.store.names import CANARY_ALIVE_TAG, CANARY_TAG, INTENT_TAG

pytestmark = pytest.mark.process

POLICY = GatePolicy.model_validate({"gain": {"metric": "exact_match"}, "latency": {"over_champion": 2.0}})
SPLIT = "finetune.split"


@pytest.fixture
def bot(desk):
    """(client, its champion, a better candidate)."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(desk.tracking_uri)
    client = desk.client()
    first = register_proven(client, "bot", rows(60), right=20, policy=POLICY)
    client.set_registered_model_alias("bot", "champion", first)
    second = register_proven(client, "bot", rows(60), right=55, policy=POLICY)
    router = ToldRouter(desk.tracking_uri, "bot", first, second)
    for version in (first, second):
        router.counts[version][0] = 500
        summary = router._summary(version).to_json()
        client.set_model_version_tag("bot", version, "finetune.served.host-1", summary)
    yield client, router, first, second
    mlflow.set_tracking_uri(before)


def promote(*more, canary="5,50", step="0.5s", least="20"):
    return main(["promote", "bot", "--canary", canary, "--step", step, "--least-answers", least, *more])


def model_of(client):
    model = client.get_registered_model("bot")
    return {alias: str(version) for alias, version in model.aliases.items()}, dict(model.tags)


def is_as_before(client, champion, split=None):
    aliases, tags = model_of(client)
    assert aliases.get("champion") == champion
    assert "canary" not in aliases
    assert tags.get(SPLIT) == split
    assert not [key for key in tags if key in (CANARY_TAG, INTENT_TAG) or key.startswith(CANARY_ALIVE_TAG)]
    return True


def record_of(client):
    record = next(record for record in history(client, "bot") if record.run_id)
    return record, client.get_run(record.run_id)


def begun(client, share):
    return wait_for(lambda: f"canary={share}" in model_of(client)[1].get(SPLIT, ""), 120, f"a canary at {share} %")


class Promotion(threading.Thread):
    """Beside the test, which does something meanwhile."""

    def __init__(self, *more, **canary):
        super().__init__()
        self._work = lambda: promote(*more, **canary)
        self.code = None

    def run(self):
        self.code = self._work()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *error):
        self.join(60)
        assert not self.is_alive()


def test_it_widens_step_by_step_and_the_alias_moves(bot, capsys):
    client, router, first, second = bot
    client.set_registered_model_tag("bot", SPLIT, "champion=90, challenger=10")
    with telling(router):
        assert promote() == 0
    assert router.canaries == ["champion=95, canary=5", "champion=50, canary=50"]
    assert is_as_before(client, second, "champion=90, challenger=10")
    record, run = record_of(client)
    assert (record.outcome, record.from_version, record.to_version, record.is_moved) == ("promote", first, second, True)
    assert run.info.status == "FINISHED"
    shares = client.get_metric_history(record.run_id, "canary/share_percent")
    assert [(metric.step, metric.value) for metric in shares] == [(1, 5.0), (2, 50.0)]
    assert all(one.value >= 20 for one in client.get_metric_history(record.run_id, "canary/answers"))
    told = json.loads(Path(client.download_artifacts(record.run_id, "verdict.json", ".")).read_text())
    assert [step["share"] for step in told["canary"]["steps"]] == [5.0, 50.0]
    assert told["canary"]["outcome"] == told["verdict"]["outcome"] == "promote"
    page = Path(client.download_artifacts(record.run_id, "report.html", ".")).read_text()
    assert "<h2>Canary</h2>" in page
    said = capsys.readouterr()
    assert "answers 50 % of the requests, step 2 of 2" in said.err
    assert said.out.startswith("promote: bot version")


def test_answers_that_fail_put_the_split_back(bot, capsys):
    client, router, first, second = bot
    router.fails[second] = 0.5
    with telling(router):
        assert promote(canary="5,50", step="2s", least="9999") == 4
    assert router.canaries == ["champion=95, canary=5"]
    assert is_as_before(client, first)
    record, run = record_of(client)
    assert (record.outcome, record.is_moved, run.info.status) == ("reject", False, "FINISHED")
    assert record.reason.startswith("canary failures: ")
    assert "reject" in client.get_model_version("bot", second).tags["finetune.verdict"]
    assert main(["history", "bot"]) == 0
    assert "canary failures: " in capsys.readouterr().out


def test_failures_before_the_canary_and_of_both_sides_are_not_its_fault(bot):
    client, router, first, second = bot
    router.counts[second] = [5000, 4500]
    summary = router._summary(second).to_json()
    client.set_model_version_tag("bot", second, "finetune.served.host-1", summary)
    router.restart()
    router.fails = {first: 0.02, second: 0.02}
    with telling(router), Promotion() as promotion:
        begun(client, 5)
        router.restart()
    assert promotion.code == 0
    assert is_as_before(client, second)


def test_slow_answers_put_the_split_back(bot):
    client, router, first, second = bot
    router.p95_ms = {first: 100.0, second: 250.0}
    with telling(router):
        assert promote(canary="50", step="2s", least="9999") == 4
    assert record_of(client)[0].reason.startswith("canary latency over champion: ")
    assert is_as_before(client, first)


def test_a_canary_without_answers_holds(bot):
    client, router, first, _ = bot
    router.is_silent = True
    with telling(router):
        assert promote(step="0.2s") == 3
    assert is_as_before(client, first)
    assert "0 answers in 2 s; the step needs 20 in 0.2 s" in record_of(client)[0].reason


def test_a_rollback_ends_it_and_others_are_refused_meanwhile(bot, capsys):
    client, router, first, second = bot
    with telling(router), Promotion(step="2s", least="9999") as promotion:
        begun(client, 5)
        assert main(["promote", "bot"]) == 2
        assert promote() == 2
        said = capsys.readouterr().err
        assert said.count(f"a canary of version {second} at 5 %, begun ") == 2
        assert "is under way; fix: wait for its end, or end it: mlflow-finetune rollback bot" in said
        assert main(["history", "bot"]) == 0
        assert main(["watch", "bot"]) == 0, "the champion can be looked at meanwhile"
        assert main(["rollback", "bot", "--reason", "it swears"]) == 0
        said = capsys.readouterr().out
        assert "split is put back to none" in said
        assert "the champion was not moved" in said
    assert promotion.code == 4
    assert is_as_before(client, first)
    record, run = record_of(client)
    assert (record.outcome, run.info.status) == ("reject", "FINISHED")
    assert "ended by a rollback of" in record.reason
    assert "(it swears) at 5 %" in record.reason


@pytest.mark.fault
@pytest.mark.parametrize("names_canary", [False, True])
def test_a_split_that_somebody_else_sets_ends_it(bot, names_canary, capsys):
    client, router, first, _ = bot
    split = "champion=80, canary=20" if names_canary else "champion=80, challenger=20"
    with telling(router), Promotion(step="2s", least="9999") as promotion:
        begun(client, 5)
        client.set_registered_model_tag("bot", SPLIT, split)
    assert promotion.code == 3
    assert is_as_before(client, first, None if names_canary else split)
    assert ("by other means, and stays so" in capsys.readouterr().err) is not names_canary
    assert f"{split!r} now, set by other means" in record_of(client)[0].reason


def test_a_canary_that_was_ended_meanwhile_moves_nothing(bot):
    client, _, first, second = bot
    with pytest.raises(MoveError, match="another process ended the canary of version 2; nothing was moved"):
        promote_version(client, "bot", second, evidence=evidence(first), own_canary="ended")
    assert is_as_before(client, first)


@pytest.mark.fault
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_puts_the_split_back(bot, sent, capsys):
    client, router, first, _ = bot

    def send():
        begun(client, 5)
        os.kill(os.getpid(), sent)

    sender = threading.Thread(target=send)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    sender.start()
    with telling(router):
        try:
            code = promote(step="2s", least="9999")
        except SystemExit as ended:
            code = ended.code
    sender.join()
    assert code == 128 + sent
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert "finetune.split is put back to none" in capsys.readouterr().err
    assert is_as_before(client, first)
    record, run = record_of(client)
    assert (record.outcome, record.is_moved, run.info.status) == ("hold", False, "KILLED")
    assert f"stopped by signal {sent:d} in step 1" in record.reason


@pytest.mark.fault
def test_what_a_dead_process_left_is_put_back_by_the_next_call(bot, capsys):
    client, _, first, second = bot
    client.set_registered_model_tag("bot", SPLIT, "champion=95, canary=5")
    client.set_registered_model_alias("bot", "canary", second)
    run = client.create_run(promotions_experiment(client, "bot")).info.run_id
    left = CanaryState(
        id="c1",
        candidate=second,
        champion=first,
        steps=(5.0, 50.0),
        step=1,
        split_before="champion=1",
        split_now="champion=50, canary=50",
        who="me@elsewhere",
        pid=1,
        machine="another",
        begun=now(),
        heartbeat=time.time() - 310,
        run_id=run,
        policy_digest="d" * 64,
        candidate_digest=None,
        champion_digest=None,
    )
    client.set_registered_model_tag("bot", CANARY_TAG, left.to_json())
    client.set_registered_model_tag("bot", f"{CANARY_ALIVE_TAG}c1", f"{time.time():.3f}")
    with pytest.raises(MoveError, match=r"at 50 %, begun .* by me@elsewhere, is under way"):
        settle(client, "bot")
    main(["promote", "bot", "--dry-run"])
    assert "is under way: promote would be refused until it ends" in capsys.readouterr().err
    client.set_registered_model_tag("bot", f"{CANARY_ALIVE_TAG}c1", f"{time.time() - 301:.3f}")
    main(["promote", "bot", "--dry-run"])
    assert "was cut off and still gets its share of the requests" in capsys.readouterr().err
    assert dict(client.get_registered_model("bot").tags)[SPLIT] == "champion=95, canary=5", "a dry run moves nothing"
    client.set_registered_model_tag("bot", f"{CANARY_ALIVE_TAG}c0", f"{time.time():.3f}")
    assert main(["history", "bot"]) == 0
    said = capsys.readouterr()
    assert "was cut off; finetune.split is put back to champion=1" in said.err
    assert "canary cut off at 50 %" in said.out
    assert is_as_before(client, first, "champion=1")
    assert client.get_run(run).info.status == "FAILED"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--canary", "5,x"], "expected percentages"),
        (["--canary", "50,25"], "rising percentages"),
        (["--canary", "5", "--step", "soon"], "is not a duration"),
        (["--canary", "5", "--least-answers", "0"], "a number from 1"),
        (["--step", "5m"], "step without canary"),
        (["--canary", "5", "--to", "staging"], "a canary is for champion, not staging"),
    ],
)
def test_what_is_no_canary_is_told_and_changes_nothing(bot, arguments, said, capsys):
    client, _, first, _ = bot
    assert main(["promote", "bot", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert is_as_before(client, first)


def test_it_needs_a_champion_and_a_free_alias(bot, capsys):
    client, _, first, _ = bot
    client.set_registered_model_alias("bot", "canary", first)
    assert promote() == 2
    assert "the alias 'canary' is version" in capsys.readouterr().err
    client.delete_registered_model_alias("bot", "canary")
    client.delete_registered_model_alias("bot", "champion")
    assert promote() == 2
    assert "has no champion that could answer the rest" in capsys.readouterr().err
