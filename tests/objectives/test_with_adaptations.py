"""Objectives with adaptations, from pairs, ratings or prompts to a version that is loaded back.

``lora`` is left out, because the tests of each objective use it; so is ``sft``: tests/adaptations/test_contract.py. Reward models are
in test_reward_model.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base

from mlflow_finetune_plugin.adaptations._peft import MODULES
from mlflow_finetune_plugin.methods import load_method, method_names

pytestmark = pytest.mark.train

SMALL = {
    "qlora": ({"rank": 4}, 1e-2),
    "bottleneck": ({}, 1e-2),
    "ia3": ({}, 5e-2),
    "prompt": ({"num_virtual_tokens": 6}, 5e-2),
    "prefix": ({"num_virtual_tokens": 6}, 5e-2),
    "ptuning": ({"num_virtual_tokens": 6}, 1e-2),
    "full": ({}, 1e-2),
}
"""Each adaptation's smallest options, and a learning rate at which a few steps show."""
SERVING = {"qlora": "vllm", "ia3": "convertible", "full": "merge"}
PAIRS = [
    (objective, adaptation)
    for objective in ("dpo", "orpo", "kto", "grpo", "rloo")
    for adaptation in method_names("adaptation")
    if adaptation not in {"lora", *MODULES}
    # dpo and grpo train with all; the others share their code for what an adaptation changes: its base with the adapter off,
    # which is another copy for full, and its virtual tokens
    and (objective in ("dpo", "grpo") or adaptation in ("full", "prompt"))
]
SAYS_E = {
    "grader": {
        "type": "string_check",
        "name": "says_e",
        "operation": "like",
        "input": "{{sample.output_text}}",
        "reference": "e",
    }
}
ROLLOUTS = {"rewards": [SAYS_E], "max_completion_length": 6, "num_generations": 4, "start_prompts": 8}
ANSWERS = {"parcel": "delivery", "contract": "cancellation", "kettle": "returns", "bill": "payment"}


def write_pairs(folder: Path, name: str, numbers: range) -> str:
    """Pairs of which the better answer is the label that belongs to the noun."""
    folder.mkdir(parents=True, exist_ok=True)
    nouns, labels = list(ANSWERS), list(ANSWERS.values())
    rows = [
        {
            "prompt": f"a word about my {nouns[i % 4]}, number {i}",
            "chosen": labels[i % 4],
            "rejected": labels[(i + 1 + i // 4 % 3) % 4],
        }
        for i in numbers
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(folder: Path, store: Path, objective: str, adaptation: str):
    """Train a few steps on a tiny base, and return what the pipeline recorded."""
    base, (options, rate) = tiny_base(folder / "base"), SMALL[adaptation]
    samples = load_method("objective", objective).ROWS == "prompts"
    data = {}
    if not samples:
        data["train"] = [{"path": write_pairs(folder, "pairs", range(32))}]
        data["eval"] = [{"path": write_pairs(folder, "test_pairs", range(100, 112))}]
    config = config_for(
        folder,
        base,
        entry_point=objective,
        adaptation=adaptation,
        objective=objective,
        base_model={"name": str(base), "quantization": load_method("adaptation", adaptation).QUANTIZATION},
        data=data,
        options=ROLLOUTS if samples else {},
        training={
            "max_steps": 2 if samples else 8,
            "learning_rate": rate,
            "per_device_train_batch_size": 8,
            "save_steps": None,
        },
    )
    all_options = {**options, **(ROLLOUTS if samples else {})}
    return run_pipeline(folder / "run", store, config.model_copy(update={"options": all_options}))


@pytest.mark.parametrize(("objective", "adaptation"), PAIRS)
def test_a_version_of_each_pair_is_proven_and_loads_back(objective, adaptation, tmp_path, empty_store):
    ran = run(tmp_path, empty_store, objective, adaptation)
    metrics, tags = ran.run.data.metrics, ran.run.data.tags
    assert ran.reload_error() < 1e-4
    assert (tags["finetune.adaptation"], tags["finetune.objective"]) == (adaptation, objective)
    assert tags["finetune.serving"] == SERVING.get(adaptation, "transformers")
    assert ran.result["model_uri"] == "models:/bot/1"
    if objective in ("grpo", "rloo"):
        assert {
            "eval/gain/reward",
            "eval/gain/exact_match",
            "train/kl",
            "train/reward",
            "start/pass_at_4",
        } <= metrics.keys()
        return
    losses = [point.value for point in ran.client.get_metric_history(ran.run_id, "train/loss")]
    margins = [point.value for point in ran.client.get_metric_history(ran.run_id, "train/rewards/margins")]
    assert losses[-1] < losses[0]
    # most of orpo's loss is that of the better answers, and eight steps of virtual tokens hardly move the margin
    assert margins[-1] > margins[0] or (objective, adaptation) == ("orpo", "prompt")
    assert "eval/gain/perplexity" in metrics
