"""Entry points: each names a pair that exists, every pair makes a config, and one recipe serves them all."""

import itertools
import logging

import pytest

from mlflow_finetune_plugin.adaptations._peft import MODULES
from mlflow_finetune_plugin.config.entry_points import ENTRY_POINTS, OPERATIONS, EntryPoint, Operation, entry_point
from mlflow_finetune_plugin.config.evaluation import load_evaluation_config
from mlflow_finetune_plugin.config.reward_options import has_rewards
from mlflow_finetune_plugin.config.run_config import load_config
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.methods import load_method, method_names
from mlflow_finetune_plugin.promotion.config import load_promotion_config
from mlflow_finetune_plugin.watch.config import load_watch_config


def load(folder, name, **overrides: str):
    return load_config(folder, name, {"data": "rows.jsonl", **overrides}, caller=folder)


def test_names_stand_for_these_pairs():
    pairs = {point.name: (point.adaptation, point.objective) for point in ENTRY_POINTS.values()}
    expected = {
        "lora": ("lora", "sft"),
        "qlora": ("qlora", "sft"),
        "adapters": ("bottleneck", "sft"),
        "full": ("full", "sft"),
        "prompt": ("prompt", "sft"),
        "multitask": ("lora", "sft"),
    }
    assert expected.items() <= pairs.items()
    for adaptation, objective in pairs.values():
        assert load_method("adaptation", adaptation).Options
        assert load_method("objective", objective).Options
    assert not ENTRY_POINTS.keys() & OPERATIONS.keys()


@pytest.mark.parametrize(
    ("name", "adaptation", "objective"),
    [
        pair
        for pair in itertools.product(ENTRY_POINTS, method_names("adaptation"), method_names("objective"))
        if pair[0] == pair[2] or pair[1] not in MODULES  # the rows of one table differ only in their options
    ],
)
def test_every_pair_makes_a_config_under_every_name(name, adaptation, objective, tmp_path):
    more = {"reward": "reward.py"} if has_rewards(load_method("objective", objective).Options) else {}
    config = load(tmp_path, name, adaptation=adaptation, objective=objective, **more)
    assert (config.entry_point, config.adaptation, config.objective) == (name, adaptation, objective)
    assert config.adaptation_options() == load_method("adaptation", adaptation).Options()


def test_full_fine_tuning_of_a_quantised_base_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(
        ConfigError, match=r"full does not train on a base in nf4; fix: .*leave it out, or -P adaptation=qlora"
    ):
        load(tmp_path, "full", quantization="nf4")


def test_lookup_gives_a_pair_or_an_operation():
    assert isinstance(entry_point("qlora"), EntryPoint)
    assert isinstance(entry_point("evaluate"), Operation)
    with pytest.raises(ConfigError, match=r"no entry point 'qlra'; did you mean qlora\?"):
        entry_point("qlra")


def test_one_recipe_serves_several_methods_and_says_what_it_leaves_out(tmp_path, caplog):
    (tmp_path / "finetune.yaml").write_text("options:\n  rank: 8\n  reduction_factor: 4.0\n")
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, "lora").options == {"rank": 8}
        assert load(tmp_path, "adapters").options == {"reduction_factor": 4.0}
        assert load(tmp_path, "adapters", adaptation="ia3").options == {}
    messages = [record.getMessage() for record in caplog.records]
    assert (
        messages[0]
        == "finetune.yaml:3: options.reduction_factor is not read: it is an option of the adaptation bottleneck"
    )
    assert len(messages) == 4
    assert messages[1] == "finetune.yaml:2: options.rank is not read: it is an option of the adaptation lora"


def test_option_of_no_method_and_option_on_the_command_are_refused(tmp_path):
    (tmp_path / "finetune.yaml").write_text("options: {rnk: 8}\n")
    with pytest.raises(ConfigError, match=r"unknown key options\.rnk"):
        load(tmp_path, "adapters")
    (tmp_path / "finetune.yaml").unlink()
    with pytest.raises(ConfigError, match="-P rank"):
        load(tmp_path, "adapters", rank="8")


@pytest.mark.parametrize("read", [load_evaluation_config, load_promotion_config, load_watch_config])
def test_code_in_versions_is_trusted_only_on_request(tmp_path, read):
    request = {"model": "bot"} | ({"data.eval": "rows.jsonl"} if read is load_evaluation_config else {})
    for text, is_trusted in ((None, False), ("false", False), ("true", True)):
        overrides = request | ({"trust_code": text} if text is not None else {})
        assert read(tmp_path, "name", overrides, caller=tmp_path).trust_code is is_trusted
    with pytest.raises(ConfigError, match="trust_code = yes: expected true or false"):
        read(tmp_path, "name", {**request, "trust_code": "yes"}, caller=tmp_path)
