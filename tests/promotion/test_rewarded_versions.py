"""A version that learned from rewards is judged by them, also against a champion whose answers nobody scored."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pipeline_runs import run_pipeline

from mlflow_finetune_plugin.config.absolute_paths import resolve_paths
from mlflow_finetune_plugin.config.run_config import load_config
from mlflow_finetune_plugin.errors import GateError, MoveError
from mlflow_finetune_plugin.logged_models.answers import Answerer
from mlflow_finetune_plugin.promotion.decision import decide, prepare_decision
from mlflow_finetune_plugin.promotion.evidence.answers import Sources
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion, check_comparable

pytestmark = [pytest.mark.train, pytest.mark.process]

WORDS = ["cat", "dog", "house", "car", "boy", "tree", "lamp", "king"] * 4
REWARD = "def has(completion, letter):\n    return float(letter in completion)\n"


def trained(folder, empty_store, store, entry_point, reward, held_out=100):
    """Train a version on prompts with a column for the reward, and return the run.

    ``store`` is the database to add to, ``held_out`` the number in the first held-out prompt.
    """
    folder.mkdir()
    for name, number in (("train", 0), ("held_out", held_out)):
        rows = [
            {"prompt": f"Say {word} {number + i}", "completion": word, "letter": word[0]}
            for i, word in enumerate(WORDS)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "reward.py").write_text(reward)
    (folder / "finetune.yaml").write_text(
        "data: {train: train.jsonl, eval: held_out.jsonl}\n"
        "options: {rewards: [reward.py:has], max_completion_length: 6, num_generations: 4, start_check: false}\n"
        "training: {max_steps: 2, per_device_train_batch_size: 16, gradient_accumulation_steps: 1}\n"
        "eval: {forgetting: false, max_new_tokens: 6}\n"
        "register: {name: words, first_champion: manual}\n"
    )
    config = resolve_paths(load_config(folder, entry_point, {}, caller=folder), folder)
    ran = run_pipeline(folder / "run", empty_store, config, store=store)
    (folder / "reward.py").unlink()  # a promotion uses what the run recorded
    return ran


def test_a_reward_model_is_not_compared_with_a_model_that_answers():
    versions = [
        ProvenVersion(
            "bot",
            str(number),
            None,
            {"finetune.adapter_digest": str(number), "finetune.base_digest": "b", **kind},
            {},
            {},
            None,
            "",
        )
        for number, kind in enumerate(({}, {"finetune.objective": "dpo"}, {"finetune.kind": "reward"}))
    ]
    check_comparable(*versions[:2])
    with pytest.raises(MoveError, match="do not have the same kind of model"):
        check_comparable(*versions[1:])


def scores(ran, letters, value=1.0):
    table = json.loads(ran.artifact("proof/rows.json").read_text())
    answers = [row[table["columns"].index("adapter_answer")] for row in table["data"]]
    return [value * (letter in answer) for letter, answer in zip(letters, answers, strict=True)]


def judged(client, version, *, trusts_code=True):
    steps = []
    sources = Sources(answerer=lambda proven: Answerer(proven.uri), trusts_code=trusts_code)
    decision = decide(prepare_decision(client, "words", version, "champion"), sources, steps.append)
    findings = {finding.name: finding for finding in decision.verdict.findings}
    return findings["gain"], steps, findings.get("champion's rows")


def mean_rise(candidate, champion):
    return (sum(candidate) - sum(champion)) / len(champion)


def test_rewards_decide_between_registered_versions(tmp_path, empty_store, monkeypatch):
    imitated = trained(tmp_path / "sft", empty_store, None, "lora", REWARD)
    store = Path(imitated.tracking_uri.removeprefix("sqlite:///"))
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", imitated.tracking_uri)
    client = MlflowClient(imitated.tracking_uri)
    client.set_registered_model_alias("words", "champion", "1")
    rewarded = trained(tmp_path / "grpo", empty_store, store, "grpo", REWARD)
    letters = [word[0] for word in WORDS]
    before, after = scores(imitated, letters), scores(rewarded, letters)
    assert before != after
    assert sum(after) > 0

    with pytest.raises(GateError, match="which run code or ask a server that the run names; fix: --trust-code"):
        judged(client, "2", trusts_code=False)
    gain, steps, _ = judged(client, "2")  # nobody scored the answers of the champion, which imitated answers
    assert gain.interval.value == pytest.approx(mean_rise(after, before))
    assert "reward" in gain.reason
    assert "scoring the answers of both versions with the rewards of models:/words/2" in steps

    client.set_registered_model_alias("words", "champion", "2")
    again = trained(tmp_path / "again", empty_store, store, "rloo", REWARD)
    gain, steps, _ = judged(client, "3", trusts_code=False)
    assert gain.interval.value == pytest.approx(mean_rise(scores(again, letters), after))
    assert steps == []  # both proofs have the same rows and rewards

    twice = trained(tmp_path / "twice", empty_store, store, "grpo", REWARD.replace("float(", "2.0 * ("))
    gain, steps, _ = judged(client, "4")  # the champion's proof has other rewards
    assert gain.interval.value == pytest.approx(mean_rise(scores(twice, letters, 2.0), [2 * score for score in after]))
    assert "scoring the answers of both versions with the rewards of models:/words/4" in steps

    client.set_registered_model_alias("words", "champion", "1")
    trained(tmp_path / "other_rows", empty_store, store, "grpo", REWARD, held_out=500)
    gain, _, champions_rows = judged(client, "5")
    assert "reward" in gain.reason
    assert "exact match" in champions_rows.reason.replace("_", " ")
