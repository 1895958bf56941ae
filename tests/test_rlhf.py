"""The chain of recipes/rlhf: imitation, reward model, reinforcement learning from the one with the other."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from conftest import REPOSITORY

RECIPE = REPOSITORY / "recipes" / "rlhf"
SHORT = {
    "lora": {"max_steps": 40, "max_rows": 20, "forgetting": False},
    "reward": {"max_steps": 40, "max_rows": 60},
    "rloo": {"max_steps": 10, "start_prompts": 8, "max_rows": 40, "forgetting": False},
}
"""Parts of the steps, which are enough to see the rise."""


def module(name: str) -> ModuleType:
    """Return a Python file of the recipe."""
    spec = importlib.util.spec_from_file_location(f"rlhf_{name}", RECIPE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    ("reply", "is_preferred"),
    [
        ("The lamp comes to Rome on Friday.", True),
        ("Your lamp arrives in Rome next Friday.", True),
        ("lamp Rome Friday", False),
        ("Your item: lamp. Your city: Rome. Your day: Friday.", False),
        ("The lamp comes to Oslo on Friday.", False),
        ("The lamp comes to Rome on Friday", False),
        ("", False),
    ],
)
def test_metric_prefers_whole_sentences_with_the_content_of_the_note(reply, is_preferred):
    assert module("preferred").is_preferred(reply, "lamp, Rome, Friday") is is_preferred


def test_no_note_is_in_two_files():
    notes = [
        line.split('"prompt": ')[1].split('", ')[0]
        for path in sorted((RECIPE / "data").iterdir())
        for line in path.open()
    ]
    assert len(set(notes)) == len(notes) == 1340


@pytest.mark.train
@pytest.mark.process
def test_chain_makes_preferred_replies_more_frequent(desk):
    chain = module("chain")
    ended = chain.run_chain(SHORT)
    metrics = ended.metrics
    assert metrics["eval/start/preferred"] < 0.4
    assert metrics["eval/gain_over_start_low/preferred"] > 0.05
    assert f"-> {metrics['eval/adapter/preferred']:.3f}" in chain.preferred_shares(metrics)
    version = desk.client().get_model_version_by_alias("rlhf", "champion")
    assert str(version.version) == "1"
    assert version.tags["finetune.start_from"] == "models:/rlhf-sft/1"
