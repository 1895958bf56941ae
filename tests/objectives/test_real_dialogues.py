"""Pairs in HH-RLHF's format, made from real dialogues, on a real small model: the true next turn, or a turn of another dialogue."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pipeline_runs import config_for, run_pipeline

pytestmark = pytest.mark.train

SPEAKERS = {"user": "Human", "assistant": "Assistant"}
OVER_THE_BORDER = "And go where? We don't even know where we are."
"""In this dialogue of the file, one token of the tokenizer covers the line break before the answer and its first letter."""


def as_text(turns: list[dict[str, str]]) -> str:
    return "".join(f"\n\n{SPEAKERS[turn['role']]}: {turn['content']}" for turn in turns)


def write_pairs(folder: Path, dialogues: Path) -> tuple[Path, Path]:
    """Write 48 pairs to train on and 16 held-out ones, one of them with the answer ``OVER_THE_BORDER``."""
    rows = [json.loads(line)["messages"] for line in dialogues.read_text(encoding="utf-8").splitlines()]
    rows = [turns for turns in rows if turns[-1]["role"] == "assistant"]
    rng = random.Random(0)
    pairs = [
        {"chosen": as_text(turns), "rejected": as_text([*turns[:-1], rng.choice(rows)[-1]])}
        for turns in sorted(rows, key=lambda turns: turns[-1]["content"] != OVER_THE_BORDER)[:64]
    ]
    assert pairs[0]["chosen"].endswith(f"\n\nAssistant: {OVER_THE_BORDER}")
    files = folder / "test.jsonl", folder / "train.jsonl"
    for file, part in zip(files, (pairs[:16], pairs[16:]), strict=True):
        file.write_text("".join(json.dumps(pair) + "\n" for pair in part), encoding="utf-8")
    return files[1], files[0]


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_pairs_of_real_dialogues_train_a_version_that_loads_back(objective, shared_data, tmp_path, empty_store):
    train, held_out = write_pairs(tmp_path, shared_data / "datasets" / "soda_chat_subset" / "derived_messages.jsonl")
    base = shared_data / "models" / "tinystories-656k-hd64"
    scores = {"metrics": "auto", "max_new_tokens": "auto", "forgetting": None}
    config = config_for(
        tmp_path,
        base,
        entry_point=objective,
        objective=objective,
        data={"train": [{"path": str(train)}], "eval": [{"path": str(held_out)}]},
        training={"max_steps": 6, "save_steps": None},
        eval=scores if objective == "reward" else {"metrics": ["preference_accuracy", "perplexity"]},
    )
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    metrics = ran.run.data.metrics
    assert metrics["reload/max_reward" if objective == "reward" else "reload/max_nats"] < 1e-4
    assert {"eval/adapter/preference_accuracy", "eval/gain_low/preference_accuracy"} <= metrics.keys()
    table = json.loads(ran.artifact("proof/rows.json").read_text())
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    assert first["reference"] == OVER_THE_BORDER
    assert "Assistant:" not in first["prompt"]
    losses = [point.value for point in ran.client.get_metric_history(ran.run_id, "train/loss")]
    assert losses[-1] < losses[0]
