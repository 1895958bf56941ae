"""A version is judged by what MLflow holds of it, and the alias moves exactly when the verdict says so. Real stores, real runs."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from promote_command import POLICY, champion, promote, report_of
from proven_versions import RIGHT, WRONG, log_believed, register_proven, rows
from votes_cast import BASE_DIGEST, digest, vote

from mlflow_finetune_plugin.errors import GateError, MoveError
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.promotion.decision import decide, prepare_decision
from mlflow_finetune_plugin.promotion.decision_run import carry_out
from mlflow_finetune_plugin.promotion.evidence.answers import Sources
from mlflow_finetune_plugin.promotion.evidence.endpoint import RouterEndpoint
from mlflow_finetune_plugin.promotion.evidence.held_out import FILE
from mlflow_finetune_plugin.promotion.moves.audit import history
from mlflow_finetune_plugin.promotion.written_policy import write_policy
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.names import FORGETTING_TABLE, FORGETTING_TAG, HELD_OUT_TABLE, PROOF_TAG, SERVED_TAG
from mlflow_finetune_plugin.store.registered_model import read_model
from mlflow_finetune_plugin.store.served_tags import ServedSummary, latency_of
from mlflow_finetune_plugin.votes import Journal, Mirror

pytestmark = pytest.mark.store


def challenger(client):
    return read_model(client, "bot")[0]["challenger"]


def nobody(version):
    raise AssertionError(f"{version.uri} was asked, and its answers are known")


# verdicts ----------------------------------------------------------------------------------------------------------------


def test_the_first_is_judged_against_its_base_and_later_ones_against_the_champion(client, capsys):
    asked = rows(200)
    first = register_proven(client, "bot", asked, right=100, base_right=20, policy=POLICY)
    assert promote("bot") == 0
    assert champion(client) == first
    worse = register_proven(client, "bot", asked, right=60, base_right=20, policy=POLICY)
    assert promote("bot") == 4
    assert champion(client) == first
    same = register_proven(client, "bot", asked, right=115, base_right=20, policy=POLICY)
    better = register_proven(client, "bot", asked, right=160, base_right=20, policy=POLICY)
    assert promote("bot", "--version", same) == 0
    assert promote("bot") == 0
    aliases, _ = read_model(client, "bot")
    assert (aliases["champion"], aliases["previous"]) == (better, same)
    told = [(one.outcome, one.from_version, one.to_version, one.is_moved) for one in history(client, "bot")]
    assert told == [
        ("promote", same, better, True),
        ("promote", first, same, True),
        ("reject", first, worse, False),
        ("promote", None, first, True),
    ]
    assert re.search(r"exact_match over the champion 0\.225 \[", capsys.readouterr().out)


def test_the_report_is_in_mlflow_and_the_version_points_to_it(client):
    version = register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    client.update_model_version("bot", version, description="lora x sft")
    assert promote("bot") == 0
    record = history(client, "bot")[0]
    run = client.get_run(record.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["gate/gain"] == pytest.approx(0.8)
    page = Path(client.download_artifacts(record.run_id, "report.html", ".")).read_text()
    assert page.count("data:image/png;base64,") == 1
    assert "<script" not in page
    told = client.get_model_version("bot", version)
    assert told.tags["finetune.verdict"] == f"promote for champion, run {record.run_id}"
    assert told.description.startswith("lora x sft\n\nGate: promote for champion")
    assert record.policy_digest == report_of(client)["policy"]["digest"]


def test_the_first_needs_no_votes_because_there_is_nobody_to_be_compared_with(client):
    policy = GatePolicy.model_validate({"gain": {"metric": "exact_match"}, "votes": {"required": True}})
    first = register_proven(client, "bot", rows(100), right=90, policy=policy)
    assert promote("bot") == 0
    assert champion(client) == first
    register_proven(client, "bot", rows(100), right=99, policy=policy)
    assert promote("bot") == 3, "now there is"


@pytest.mark.parametrize(("choice", "code"), [("left", 0), ("right", 4)])
def test_the_first_is_weighed_against_its_base_where_people_compared_them(client, tmp_path, capsys, choice, code):
    policy = GatePolicy.model_validate(
        {"gain": {"metric": "exact_match"}, "votes": {"per_voter": 1, "minimum": 10, "required": True}}
    )
    first = register_proven(client, "bot", rows(100), right=90, policy=policy, adapter=digest("1"), base=BASE_DIGEST)
    journal = Journal("bot", tmp_path / "journal")
    for number in range(40):
        journal.cast(vote(number, choice, voter=f"v-{number}", left=first, right="base"))
    Mirror(journal).flush()
    assert promote("bot") == code
    assert f"{'better' if choice == 'left' else 'worse'} than the base, shown after" in capsys.readouterr().out


def test_too_few_rows_hold_and_say_how_many_more(client, capsys):
    asked = rows(20)
    first = register_proven(client, "bot", asked, right=10, policy=POLICY)
    client.set_registered_model_alias("bot", "champion", first)
    policy = GatePolicy.model_validate({"gain": {"metric": "exact_match", "at_least": 0.01}})
    register_proven(client, "bot", asked, right=11, policy=policy)
    assert promote("bot") == 3
    assert "more rows like these would likely decide" in capsys.readouterr().out
    assert champion(client) == first


def test_without_evidence_that_the_policy_asks_for_it_holds(client):
    policy = GatePolicy.model_validate(
        {"forgetting": {"at_most": 0.1}, "latency": {"p95_ms": 100}, "votes": {"required": True}}
    )
    first = register_proven(client, "bot", rows(100), right=10, policy=policy)
    client.set_registered_model_alias("bot", "champion", first)
    register_proven(client, "bot", rows(100), right=90, policy=policy)
    assert promote("bot") == 3
    found = {one["name"]: one["outcome"] for one in report_of(client)["verdict"]["findings"]}
    assert found == {"gain": "pass", "forgetting": "hold", "votes": "hold", "latency p95": "hold"}


def test_who_does_not_tell_what_it_was_trained_on_proves_nothing(client):
    register_proven(client, "bot", rows(50), right=50, policy=POLICY, trained_on=None)
    assert promote("bot") == 3
    assert "what it was trained on is not known" in report_of(client)["notes"][0]


def test_no_rows_used_hold(client):
    register_proven(client, "bot", None, right=0, policy=POLICY)
    assert promote("bot") == 3


def test_forgetting_and_latency_are_read_where_they_are(client):
    policy = GatePolicy.model_validate(
        {"forgetting": {"at_most": 0.1}, "latency": {"p95_ms": 100, "over_champion": 1.2}}
    )
    measured = {"forgetting/nats_per_token": 0.05, "forgetting/nats_per_token_low": 0.0}
    first = register_proven(client, "bot", rows(100), right=10, policy=policy)
    client.set_registered_model_alias("bot", "champion", first)
    second = register_proven(
        client, "bot", rows(100), right=90, policy=policy, metrics={**measured, "forgetting/nats_per_token_high": 0.09}
    )
    times = [50.0 + i % 40 for i in range(1000)]

    def report(version, factor):
        taken = [ms * factor for ms in times]
        recent = latency_of([(time.time(), ms) for ms in taken])
        summary = ServedSummary(0.0, len(times), 0, recent, LatencyCounts.of(taken))
        client.set_model_version_tag("bot", version, f"{SERVED_TAG}router", summary.to_json())

    report(first, 1.0)
    report(second, 1.05)
    assert promote("bot") == 0
    client.set_registered_model_alias("bot", "champion", first)
    report(second, 3)
    assert promote("bot", "--version", second) == 4


def with_texts(client, version, harms):
    """Give the version's run the nats of texts of 50 tokens each, on which it is worse by these nats per token."""
    run_id = client.get_model_version("bot", version).run_id
    texts = [{"tokens": 50, "base": 100.0, "adapter": 100.0 + 50 * harm} for harm in harms]
    log_believed(client, run_id, FORGETTING_TAG, json.dumps(texts), FORGETTING_TABLE)
    return run_id


def test_forgetting_is_judged_on_the_texts_of_the_run(client):
    """A few texts carry the harm: the interval over texts reaches above the bound, though their mean is below it."""
    policy = GatePolicy.model_validate({"gain": None, "forgetting": {"at_most": 0.1}})
    even, uneven = [0.05, 0.06, 0.04, 0.05] * 10, [0.0] * 38 + [1.0, 1.0]
    for harms, code, outcome in ((even, 0, "pass"), (uneven, 3, "hold")):
        version = register_proven(client, "bot", rows(20), right=10, policy=policy)
        with_texts(client, version, harms)
        assert promote("bot", "--version", version) == code
        (finding,) = report_of(client)["verdict"]["findings"]
        assert (finding["name"], finding["outcome"]) == ("forgetting", outcome)
        assert finding["estimate"] == pytest.approx(0.05)
        assert "bootstrap-t" in finding["method"]


def test_a_changed_or_lost_file_of_texts_is_refused(client, capsys):
    policy = GatePolicy.model_validate({"gain": None, "forgetting": {"at_most": 0.1}})
    version = register_proven(client, "bot", rows(20), right=10, policy=policy)
    run_id = with_texts(client, version, [0.2] * 40)
    client.log_text(run_id, json.dumps([{"tokens": 50, "base": 100.0, "adapter": 100.0}] * 40), "proof/forgetting.json")
    assert promote("bot", "--version", version) == 2
    assert "its run recorded forgetting.json as" in capsys.readouterr().err
    artifacts = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
    (artifacts / "proof" / "forgetting.json").unlink()
    assert promote("bot", "--version", version) == 2
    assert "but it is gone" in capsys.readouterr().err


def test_rows_that_a_side_was_trained_on_are_no_evidence(client):
    """Nine tenths by heart: what is left says that it is worse."""
    asked = rows(200)
    first = register_proven(client, "bot", asked, right=120, policy=POLICY, trained_on=rows(5, "train.jsonl"))
    client.set_registered_model_alias("bot", "champion", first)
    leaky = register_proven(client, "bot", asked, right=180, policy=POLICY, trained_on=asked[:180])
    client.set_registered_model_alias("bot", "champion", first)
    assert promote("bot", "--version", leaky) == 3
    told = report_of(client)
    assert f"models:/bot/{leaky} was trained on 180 of 200 held-out rows: they are left out" in told["notes"]
    assert told["verdict"]["findings"][0]["details"]["rows"] == 20
    assert champion(client) == first


def test_a_must_pass_row_that_is_missed_rejects(client, tmp_path):
    file = tmp_path / "must-pass.jsonl"
    file.write_text("the rows of it, of which only the digest counts here")
    must_pass = rows(4, "must-pass.jsonl")
    policy = GatePolicy.model_validate({"regressions": [{"data": str(file), "metric": "exact_match", "at_least": 1.0}]})
    register_proven(client, "bot", rows(50), right=50, policy=policy, regressions={str(file): must_pass})
    pending = prepare_decision(client, "bot", challenger(client), "champion")

    class Answerer:
        def answer(self, asked, max_new_tokens=None):
            return AnswerSet([RIGHT] * 3 + [WRONG] * (len(asked) - 3), np.zeros(len(asked)))

    decision = decide(pending, Sources(answerer=lambda version: Answerer()), lambda text: None)
    assert decision.verdict.outcome == "reject"
    assert "must-pass must-pass.jsonl, exact_match: 0.75: below 1" in decision.verdict.reason
    assert decision.notes[-2:] == (
        "must-pass.jsonl: 1 of 4 rows missed:",
        "must-pass.jsonl line 4: 'question 3?' was answered 'no', not 'yes'",
    )


# which version is judged -------------------------------------------------------------------------------------------------


def test_a_champion_of_other_rows_is_asked_once(client):
    first = register_proven(client, "bot", rows(30, "old.jsonl"), right=10, policy=POLICY)
    client.set_registered_model_alias("bot", "champion", first)
    register_proven(client, "bot", rows(40), right=30, policy=GatePolicy.model_validate({"gain": {"at_least": 0.9}}))
    times = []

    class Answerer:
        def answer(self, asked, max_new_tokens=None):
            times.append(len(asked))
            return AnswerSet([WRONG] * len(asked), np.zeros(len(asked)))

    def judged():
        from mlflow_finetune_plugin.promotion.request import PromotionOptions, _sources

        pending = prepare_decision(client, "bot", challenger(client), "champion")
        sources = _sources(client, PromotionOptions(), pending, lambda text: None)
        sources.answerer = lambda version: Answerer()
        decision = decide(pending, sources, lambda text: None)
        return carry_out(client, decision, sources)

    done = judged()
    judged()
    assert times == [40]
    text = Path(client.download_artifacts(done.run_id, "sides.json", ".")).read_text()
    client.log_text(done.run_id, text.replace(f'"{WRONG}"', f'"{RIGHT}"', 5), "sides.json")
    judged()
    assert times == [40, 40], "what somebody has changed is not believed"


# policies ----------------------------------------------------------------------------------------------------------------


def test_a_policy_changed_after_the_training_is_shown_and_has_to_be_accepted(client, tmp_path, capsys):
    register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    (tmp_path / "project").mkdir()
    recipe = tmp_path / "project" / "finetune.yaml"
    recipe.write_text("register: {name: bot, gate: {gain: {metric: exact_match, at_least: -0.5}}}")
    assert promote("bot", "--policy", "project") == 2
    said = capsys.readouterr().err
    assert "the policy has changed since its training" in said
    assert "'at_least': 0.0" in said
    assert "'at_least': -0.5" in said
    assert "--accept-new-policy" in said
    assert champion(client) is None
    assert promote("bot", "--policy", "project", "--accept-new-policy") == 0
    assert report_of(client)["policy_is_changed"] is True
    recipe.write_text("register: {name: bot, gate: {gain: {metric: exact_match}}}")
    register_proven(client, "bot", rows(50), right=49, policy=POLICY)
    assert promote("bot", "--policy", "project") == 0, "written otherwise, and the same"


def test_a_policy_that_was_tampered_with_is_refused(client):
    version = register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    run_id = client.get_model_version("bot", version).run_id
    path = client.download_artifacts(run_id, "finetune/gate/policy.json", ".")
    content = json.loads(Path(path).read_text())
    content["gate"]["gain"]["at_least"] = -1.0
    client.log_text(run_id, json.dumps(content), "finetune/gate/policy.json")
    with pytest.raises(GateError, match="find out who changed it"):
        prepare_decision(client, "bot", version, "champion")
    honest = write_policy(GatePolicy.model_validate({"gain": {"at_least": -1.0}}), {})
    client.log_text(run_id, honest.to_json(), "finetune/gate/policy.json")
    with pytest.raises(GateError, match="its run recorded the policy"):
        prepare_decision(client, "bot", version, "champion")


def test_a_policy_for_a_version_that_wrote_none_is_a_new_one(client, tmp_path):
    register_proven(client, "bot", rows(50), right=40)
    (tmp_path / "finetune.yaml").write_text("register: {name: bot, gate: {gain: null, latency: {p95_ms: 1.0e+6}}}")
    assert promote("bot", "--policy", ".") == 2
    assert promote("bot", "--policy", ".", "--accept-new-policy") == 3


# bad input ---------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_judged_is_one_message_and_moves_nothing(client, capsys):
    first = register_proven(client, "bot", rows(20), right=20, policy=POLICY, adapter="a" * 64)
    client.set_registered_model_alias("bot", "champion", first)
    register_proven(client, "bot", rows(20), right=20, policy=POLICY, adapter="a" * 64)
    other = register_proven(client, "bot", rows(20), right=20, policy=POLICY, base="c" * 64)
    client.create_model_version("bot", "runs:/nothing/model")
    for arguments, said in (
        (["nobody"], "no registered model 'nobody'"),
        (["bot", "--version", "99"], "no version 99"),
        (["bot/2", "--version", "2"], "names a version besides version 2"),
        (["bot@nothing"], "has no alias 'nothing'"),
        (["bot", "--version", "2", "--to", "previous"], "no version can be promoted to 'previous'"),
        (["bot", "--version", "2", "--to", "v3"], "no version can be promoted to 'v3'"),
        (["bot", "--version", "2"], "hold the same adapter"),
        (["bot", "--version", other], "do not have the same base"),
        (["bot", "--version", "4"], "was not registered by mlflow-finetune"),
        (["bot", "--version", other, "--policy", "nowhere"], "has no register.gate"),
    ):
        assert promote(*arguments) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "fix:" in told
    assert champion(client) == first
    assert history(client, "bot")[0].kind == "unexplained", "the test set it by hand"


def test_an_endpoint_holds_no_secret():
    for url in ("http://me:secret@here/v1", "here:8000", "file:///etc/passwd"):
        with pytest.raises(GateError, match="without a name and password") as caught:
            RouterEndpoint(url)
        assert "secret" not in str(caught.value)


def test_a_dry_run_moves_nothing_and_leaves_no_report(client, capsys):
    register_proven(client, "bot", rows(50), right=40, policy=POLICY)
    assert promote("bot", "--dry-run") == 0
    assert champion(client) is None
    assert client.get_experiment_by_name("bot.promotions") is None
    assert "nothing was moved, and no report was written" in capsys.readouterr().out


def test_answers_that_are_of_other_rows_are_refused(client):
    version = register_proven(client, "bot", rows(20), right=20, policy=POLICY)
    run_id = client.get_model_version("bot", version).run_id
    table = json.loads(Path(client.download_artifacts(run_id, "proof/rows.json", ".")).read_text())
    table["data"] = table["data"][:-1]
    log_believed(client, run_id, PROOF_TAG, json.dumps(table), HELD_OUT_TABLE)
    with pytest.raises(GateError, match="is not a table of these rows"):
        decide(prepare_decision(client, "bot", version, "champion"), Sources(answerer=nobody), lambda text: None)


@pytest.mark.parametrize("file", [FILE, HELD_OUT_TABLE])
def test_a_proof_that_somebody_changed_is_refused(client, capsys, file):
    version = register_proven(client, "bot", rows(20), right=10, policy=POLICY)
    run_id = client.get_model_version("bot", version).run_id
    text = Path(client.download_artifacts(run_id, f"proof/{file}", ".")).read_text()
    client.log_text(run_id, f"{text} ", f"proof/{file}")
    assert promote("bot") == 2
    assert f"its run recorded {file} as" in capsys.readouterr().err
    assert champion(client) is None


def test_a_champion_that_moved_meanwhile_stops_the_move(client):
    first, second = (register_proven(client, "bot", rows(50), right=right, policy=POLICY) for right in (10, 20))
    third = register_proven(client, "bot", rows(50), right=50, policy=POLICY)
    client.set_registered_model_alias("bot", "champion", first)
    sources = Sources(answerer=nobody)
    decision = decide(prepare_decision(client, "bot", third, "champion"), sources, lambda text: None)
    client.set_registered_model_alias("bot", "champion", second)
    with pytest.raises(MoveError, match="judge again"):
        carry_out(client, decision, sources)
    assert champion(client) == second
