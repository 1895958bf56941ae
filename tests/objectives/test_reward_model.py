"""A reward model from the pipeline to its users: proof, logged model, and what refuses it."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas
import pytest
import torch
from conftest import REPOSITORY
from peft import PeftModel
from pipeline_runs import config_for, run_pipeline
from safetensors.torch import load_file, save_file
from tiny_bases import FAMILIES, tiny_base

from mlflow_finetune_plugin.adaptations._peft import MODULES
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.errors import BaseModelError, ConfigError, EngineChoiceError, ReloadError
from mlflow_finetune_plugin.evaluation.rewards import rewards_of
from mlflow_finetune_plugin.logged_models.adapter import reload_python_model
from mlflow_finetune_plugin.logged_models.answers import Answerer
from mlflow_finetune_plugin.logged_models.conversion import export_lora
from mlflow_finetune_plugin.logged_models.merging import export_merged
from mlflow_finetune_plugin.logged_models.reward_models import check_reward_reload, make_reward_reference
from mlflow_finetune_plugin.methods import load_method, method_names
from mlflow_finetune_plugin.planning.step_trace import adapted_model
from mlflow_finetune_plugin.promotion.evidence.held_out import read_held_out
from mlflow_finetune_plugin.rewards.completion import Completion
from mlflow_finetune_plugin.rewards.process.model import load_model
from mlflow_finetune_plugin.rewards.process.target import ScoringTarget
from mlflow_finetune_plugin.serving.versions.card import check_card

pytestmark = pytest.mark.train

GUIDE = (REPOSITORY / "docs" / "guides" / "reward-models.md").read_text()
# each adaptation's smallest options, and a learning rate at which a few steps show
SMALL = {
    "lora": ({"rank": 4}, 1e-2),
    "qlora": ({"rank": 4}, 1e-2),
    "bottleneck": ({}, 1e-2),
    "ia3": ({}, 1e-1),
    "full": ({}, 1e-2),
    "prompt": ({"num_virtual_tokens": 6}, 1e-2),
    "prefix": ({"num_virtual_tokens": 6}, 1e-1),
}
STRANGER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mlflow_finetune_plugin":
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import torch; torch.set_num_threads(1)
import mlflow
print("SCORES" + json.dumps(list(mlflow.pyfunc.load_model(sys.argv[1]).predict(json.loads(sys.argv[2])))))
"""


def write_pairs(folder: Path) -> tuple[Path, Path]:
    """Pairs of which the label that belongs to the noun is the better answer; the worse one is another label."""
    labels = {"parcel": "delivery", "contract": "cancellation", "kettle": "returns", "bill": "payment"}
    names = list(labels.values())

    def line(i: int) -> str:
        noun, label = list(labels.items())[i % 4]
        wrong = names[(i % 4 + 1 + i // 4 % 3) % 4]
        return json.dumps({"prompt": f"a word about my {noun}, number {i}", "chosen": label, "rejected": wrong})

    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = folder / "pairs.jsonl", folder / "test_pairs.jsonl"
    train.write_text("\n".join(line(i) for i in range(96)) + "\n")
    held_out.write_text("\n".join(line(i) for i in range(100, 148)) + "\n")
    return train, held_out


def reward_config(folder: Path, base: Path, adaptation: str = "lora", **sections):
    train, held_out = write_pairs(folder / "data")
    options, rate = SMALL[adaptation]
    training = {"learning_rate": rate, "max_steps": 40, "per_device_train_batch_size": 16, "save_steps": None}
    config = config_for(
        folder,
        base,
        entry_point="reward",
        adaptation=adaptation,
        objective="reward",
        base_model={"name": str(base), "quantization": load_method("adaptation", adaptation).QUANTIZATION},
        data={"train": [{"path": str(train)}], "eval": [{"path": str(held_out)}]},
        training={**training, **sections.pop("training", {})},
        eval={"metrics": "auto", "max_new_tokens": "auto", "forgetting": None},
        register={"name": "my-rewards"},
        **sections,
    )
    return config.model_copy(update={"options": options})


@pytest.fixture(scope="module")
def ran(tmp_path_factory, empty_store):
    folder = tmp_path_factory.mktemp("reward")
    config = reward_config(folder, tiny_base(folder / "base"), training={"eval_steps": 20, "save_steps": 20})
    return run_pipeline(folder / "run", empty_store, config)


@pytest.fixture
def logged(ran):
    mlflow.set_tracking_uri(ran.tracking_uri)
    return ran.result["model_uri"]


def held_out(ran) -> list[dict]:
    table = json.loads(ran.artifact("proof/rows.json").read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_the_proof_compares_pairs_with_a_rule_of_length(ran):
    metrics, rows = ran.run.data.metrics, held_out(ran)
    right = np.mean([row["adapter_reward"] > row["adapter_rejected_reward"] for row in rows])
    assert metrics["eval/adapter/preference_accuracy"] == metrics["reward/accuracy"] == right > 0.7
    longer = np.mean([row["base_reward"] > row["base_rejected_reward"] for row in rows])
    assert metrics["eval/base/preference_accuracy"] == longer >= 0.5
    assert metrics["eval/gain_low/preference_accuracy"] > 0
    assert metrics["reward/accuracy_low"] > 0.5
    rewards = [row[key] for row in rows for key in ("adapter_reward", "adapter_rejected_reward")]
    assert metrics["reward/mean"] == pytest.approx(np.mean(rewards))
    assert metrics["reward/margin"] > 0
    assert abs(metrics["reward/mean"]) < metrics["reward/deviation"]
    assert 0 <= metrics["reward/calibration_error"] < 0.5
    assert -1 <= metrics["reward/length_correlation"] <= 1
    buckets = json.loads(ran.artifact("proof/calibration.json").read_text())
    assert sum(bucket["pairs"] for bucket in buckets) == len(rows)
    assert "forgetting/nats_per_token" not in metrics
    assert not [name for name in metrics if "perplexity" in name]
    description = ran.run.data.tags["mlflow.note.content"]
    for words in (
        "better than the rule",
        "calibration: right in",
        "rewards correlate with",
        "forgetting: not measured",
    ):
        assert words in description


def test_the_run_logs_its_figures_and_its_version_says_what_it_is(ran):
    history = ran.client.get_metric_history(ran.run_id, "train/accuracy")
    assert history[-1].value > history[0].value
    assert [m.step for m in ran.client.get_metric_history(ran.run_id, "validation/accuracy")] == [20, 40]
    assert ran.run.data.metrics["reload/max_reward"] < 1e-4
    version = ran.client.get_model_version("my-rewards", "1")
    assert (version.tags["finetune.kind"], version.tags["finetune.serving"]) == ("reward", "none")
    assert version.tags["finetune.objective"] == "reward"
    assert "it scores conversations and writes no answers" in version.description
    champion = ran.client.get_registered_model("my-rewards").aliases["champion"]
    assert str(champion) == "1"  # by the gate, from the recorded pairs
    (plan,) = [event for event in ran.events("stage") if event["name"] == "plan" and "fits" in event["text"]]
    assert ran.run.data.metrics["plan/memory_mib"] > 0, plan
    assert [event for event in ran.events("stage") if event["name"] == "next" and "serve" in event["text"]] == []


def test_only_adapter_and_score_head_are_logged_and_stock_peft_loads_them(ran, logged):
    folder = Path(mlflow.artifacts.download_artifacts(logged)) / "artifacts"
    card = json.loads((folder / "finetune.json").read_text())
    assert card["kind"] == "reward"
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert [name for name in weights if "lora_" not in name] == ["base_model.model.score.weight"]
    probes = json.loads((folder / "reference.json").read_text())["probes"]
    page: dict = {}
    exec(re.search(r"^```python title=score\.py\n(.*?)^```$", GUIDE, re.M | re.S)[1], page)
    torch.manual_seed(123)  # another random head
    model, tokenizer = page["load"](ran.config.base_model.name, folder)
    rows = held_out(ran)
    for probe, row in zip(probes, rows, strict=False):
        messages = [*probe["messages"], {"role": "assistant", "content": row["reference"]}]
        assert page["score"](model, tokenizer, messages) == pytest.approx(probe["reward"], abs=1e-4)


def test_rows_of_every_shape_get_one_float_each(ran, logged):
    model, rows = mlflow.pyfunc.load_model(logged), held_out(ran)[:5]
    expected = [row["adapter_reward"] for row in rows]
    texts = [{"prompt": row["prompt"], "completion": row["reference"]} for row in rows]
    turns = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["reference"]}] for row in rows
    ]
    for form in (
        texts,
        pandas.DataFrame(texts),
        [{"messages": messages} for messages in turns],
        [{"prompt": messages[:1], "completion": messages[1:]} for messages in turns],
    ):
        scores = model.predict(form)
        assert all(isinstance(score, float) for score in scores)
        assert list(scores) == pytest.approx(expected, abs=1e-4)
    assert list(model.predict(texts, params={"batch_size": 2})) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("text", "row 0 is a str; fix: a dict with messages, or with prompt and completion"),
        ({"prompt": "a"}, "row 0 has no answer to score"),
        ({"messages": [{"role": "user", "content": "a"}]}, "row 0 has no answer to score"),
        ({"prompt": "a word " * 80, "completion": "b"}, "more than the base's 128; fix: shorten it"),
    ],
)
def test_rows_without_an_answer_are_refused(ran, logged, row, fault):
    with pytest.raises(ValueError, match=fault):
        reload_python_model(logged).predict(None, [row])


@pytest.mark.process
def test_stock_mlflow_scores_where_this_package_cannot_be_imported(ran, logged):
    rows = held_out(ran)[:3]
    questions = json.dumps([{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows])
    process = subprocess.run(
        [sys.executable, "-c", STRANGER, mlflow.artifacts.download_artifacts(logged), questions],
        cwd="/",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    line = next(line for line in process.stdout.splitlines() if line.startswith("SCORES"))
    expected = [row["adapter_rejected_reward"] for row in rows]
    assert json.loads(line.removeprefix("SCORES")) == pytest.approx(expected, abs=1e-4)


def test_a_reload_that_scores_otherwise_is_refused(ran, logged):
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
    from mlflow_finetune_plugin.logged_models.evaluation_rows import prepare_evaluation_rows

    scorer = reload_python_model(logged)
    config = EvaluationConfig(entry_point="evaluate", model=logged, data={"eval": ran.config.data.eval})
    data = prepare_evaluation_rows(config, scorer.card, ChatRenderer(scorer.tokenizer, None), ran.work / "again")
    reference = make_reward_reference(scorer.model, scorer.tokenizer, data.eval_rows, precision="float32")
    assert check_reward_reload(scorer, reference, data.eval_rows) < 1e-4
    tilted = [{**probe, "rejected_reward": probe["rejected_reward"] + 0.01} for probe in reference.probes]
    with pytest.raises(ReloadError, match=r"differs from the trained one by 0\.01 on a conversation"):
        check_reward_reload(scorer, dataclasses.replace(reference, probes=tilted), data.eval_rows)
    scorer.tokenizer.chat_template = scorer.tokenizer.chat_template.replace("'\\n' + message", "'\\n\\n' + message")
    with pytest.raises(ReloadError, match="differs from the trained one"):  # the messages are rendered otherwise
        check_reward_reload(scorer, reference, data.eval_rows)


def test_promote_and_watch_can_ask_a_version_for_the_rewards_of_other_rows(ran, logged):
    table, rows = held_out(ran), read_held_out(ran.artifact("proof/held_out.json").read_text(), "proof").rows
    assert all(row.rejected for row in rows)
    answers = Answerer(logged).answer(rows, 1)
    assert list(-answers.nats) == pytest.approx([row["adapter_reward"] for row in table], abs=1e-4)
    assert list(-answers.rejected_nats) == pytest.approx([row["adapter_rejected_reward"] for row in table], abs=1e-4)


def test_it_is_a_part_of_a_reward(ran, logged):
    """The scoring process of ``rewards: [{model: ...}]`` calls it as it calls any registered reward model."""
    folder = mlflow.artifacts.download_artifacts(logged)
    part = load_model(ScoringTarget(kind="model", path=folder, name="my-rewards"))
    rows, scores = held_out(ran)[:4], {}
    completions = [
        Completion([{"role": "user", "content": row["prompt"]}], row["rejected"], {}, number)
        for number, row in enumerate(rows)
    ]
    part.score(completions, lambda position, score: scores.__setitem__(position, score.value))
    expected = [row["adapter_rejected_reward"] for row in rows]
    assert [scores[i] for i in range(4)] == pytest.approx(expected, abs=1e-4)


def test_what_needs_answers_refuses_a_reward_model(ran, logged, tmp_path):
    with pytest.raises(ConfigError, match=r"is a reward model.*so export --merged does not apply; fix: load it with"):
        export_merged(logged, tmp_path / "merged")
    with pytest.raises(ConfigError, match=r"so export --lora does not apply"):
        export_lora(logged, tmp_path / "lora", rank=4)
    card = json.loads((Path(mlflow.artifacts.download_artifacts(logged)) / "artifacts" / "finetune.json").read_text())
    with pytest.raises(
        EngineChoiceError,
        match=r"my-rewards/1 is a reward model: it gives scores and no answers, so it is neither served",
    ):
        check_card(card, "my-rewards/1")


@pytest.mark.parametrize(
    "adaptation", [name for name in method_names("adaptation") if name not in {"lora", "ptuning", *MODULES}]
)
def test_other_adaptations_train_reward_models(adaptation, tmp_path, empty_store):
    config = reward_config(tmp_path, tiny_base(tmp_path / "base"), adaptation)
    other = run_pipeline(tmp_path / "run", empty_store, config)
    assert other.run.data.metrics["reload/max_reward"] < 1e-4
    assert other.run.data.metrics["reward/accuracy"] > 0.6
    mlflow.set_tracking_uri(other.tracking_uri)
    folder = Path(mlflow.artifacts.download_artifacts(other.result["model_uri"])) / "artifacts" / "adapter"
    assert "base_model.model.score.weight" in load_file(folder / "adapter_model.safetensors")


def test_a_tied_base_that_stores_its_output_layer_alone_keeps_its_embeddings(tmp_path, empty_store):
    """A model with a score head has no output layer, so the embeddings must be read under that name: in the run and in pyfunc."""
    base = tiny_base(tmp_path / "base", tie_word_embeddings=True)
    weights = load_file(base / "model.safetensors")
    embeddings = weights.pop("model.embed_tokens.weight")
    save_file({**weights, "lm_head.weight": embeddings}, base / "model.safetensors", metadata={"format": "pt"})
    ran = run_pipeline(tmp_path / "run", empty_store, reward_config(tmp_path, base, training={"max_steps": 10}))
    assert ran.run.data.metrics["reload/max_reward"] < 1e-4
    mlflow.set_tracking_uri(ran.tracking_uri)
    model = reload_python_model(ran.result["model_uri"]).model.get_base_model()
    assert torch.equal(model.get_input_embeddings().weight.cpu(), embeddings)


@pytest.mark.parametrize(
    "options", [{"init": "pissa"}, {"init": "olora"}, {"init": "orthogonal"}, {"dora": True}], ids=str
)
def test_variants_of_lora_save_the_score_head(options, tmp_path):
    base = loading.find_base_model(BaseModelSettings(name=str(tiny_base(tmp_path / "base"))), {})
    lora = load_method("adaptation", "lora")
    options = lora.resolve(lora.Options(rank=4, **options), loading.describe(base), {})
    model = lora.apply(loading.load_score_model(base, seed=0), options, seed=0, folder=tmp_path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.requires_grad
    conversations = [list(range(3, 12)), list(range(20, 26))]
    expected = rewards_of(model.eval(), conversations)
    lora.save(model, options, tmp_path / "saved", start=tmp_path)
    again = PeftModel.from_pretrained(loading.load_score_model(base, seed=9), tmp_path / "saved").eval()
    assert rewards_of(again, conversations) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_a_score_head_or_a_reason(family, tmp_path):
    """Rewards read the last token, packed with others or padded, as transformers does for one conversation."""
    base = loading.find_base_model(BaseModelSettings(name=str(tiny_base(tmp_path / "base", family))), {})
    adaptation = load_method("adaptation", "lora")
    options = adaptation.resolve(adaptation.Options(rank=4), loading.describe(base), {})
    if family in ("granite", "glm4_moe"):
        with pytest.raises(BaseModelError, match="transformers has no score head for"):
            adapted_model(base, adaptation, options, seed=0, kind="score")
        return
    adapted = adapted_model(base, adaptation, options, seed=0, kind="score")
    assert adapted.vocabulary == 1
    model = adaptation.apply(loading.load_score_model(base, seed=0), options, seed=0, folder=tmp_path).eval()
    conversations = [list(range(3, 3 + n)) for n in (4, 9, 6)]
    model.config.pad_token_id = None
    with torch.no_grad():
        expected = [float(model(input_ids=torch.tensor([ids])).logits) for ids in conversations]
    assert rewards_of(model, conversations) == pytest.approx(expected, abs=1e-4)
    assert len(set(np.round(expected, 6))) == 3


@pytest.mark.parametrize(
    ("task_type", "reason"),
    [
        ("CAUSAL_LM", "this adaptation cannot change a reward model .*; fix: -P adaptation=lora, or"),
        (None, "this adaptation does not train the score head, which a reward model needs; fix: -P adaptation=lora"),
    ],
)
def test_an_adaptation_that_does_not_train_the_head_is_refused_before_weights_are_read(
    tmp_path, monkeypatch, task_type, reason
):
    base = loading.find_base_model(BaseModelSettings(name=str(tiny_base(tmp_path / "base"))), {})
    adaptation = load_method("adaptation", "ia3")
    options = adaptation.resolve(adaptation.Options(), loading.describe(base), {})
    from mlflow_finetune_plugin.adaptations import ia3

    monkeypatch.setattr(ia3, "task_type", lambda model: task_type)
    with pytest.raises(BaseModelError, match=reason):
        adapted_model(base, adaptation, options, seed=0, kind="score")
