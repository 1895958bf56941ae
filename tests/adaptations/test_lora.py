"""LoRA and its relatives: each trains, is saved as adapters that load on the untouched base, and refuses what it cannot do."""

import copy
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from peft import PeftModel
from pipeline_runs import config_for, run_pipeline
from safetensors.torch import load_file
from seeing_bases import seeing_base
from tiny_bases import tiny_base
from transformers import AutoModelForCausalLM

from mlflow_finetune_plugin.adaptations import lora, qlora
from mlflow_finetune_plugin.adaptations.lora import Options
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts, part_of
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("llama"))


def facts_of(folder: Path) -> BaseFacts:
    return loading.describe(found(folder))


def found(folder: Path) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder)), {})


def wrapped(folder: Path, tmp_path: Path, **options: object) -> PeftModel:
    resolved = lora.resolve(Options(**options), facts_of(folder), {})
    torch.manual_seed(0)
    return lora.apply(loading.load_base_model(found(folder)), resolved, seed=0, folder=tmp_path)


@pytest.mark.train
@pytest.mark.parametrize(
    "options",
    [
        {"rank": 1},
        {"rank": 8, "alpha": 4.0},
        {"dropout": 0.3},
        {"rslora": True},
        {"dora": True},
        {"init": "gaussian"},
        {"init": "orthogonal"},
        {"init": "pissa"},
        {"init": "pissa", "rslora": True},
        {"init": "olora"},
        {"loraplus_ratio": 16.0},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*layers\.1\..*(up|down)_proj"},
    ],
    ids=lambda options: " ".join(f"{key}={value}" for key, value in options.items()),
)
def test_every_option_trains_and_loads_on_the_untouched_base(options, llama, tmp_path, empty_store):
    config = config_for(tmp_path, llama, options=options)
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.reload_error() < 1e-4
    serving = ran.run.data.tags["finetune.serving"]
    assert serving == ("convertible" if options.get("dora") else "vllm")
    adapter = ran.work / "adapter"
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    saved = json.loads((adapter / "adapter_config.json").read_text())
    if options.get("init") in ("pissa", "olora"):
        assert saved["init_lora_weights"] is True
        assert saved["r"] == 2 * 4
    probes = json.loads((ran.work / "reference.json").read_text())["probes"]
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, adapter).eval()
    said = completion_log_probs(
        plain, [p["prompt_ids"] for p in probes], [p["completion_ids"] for p in probes], pad_token_id=0
    )
    for probe, values in zip(probes, said, strict=True):
        torch.testing.assert_close(
            torch.tensor(probe["adapter_log_probs"]), torch.from_numpy(values), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("module", [lora, qlora], ids=["lora", "qlora"])
def test_vllm_takes_what_is_declared_so_and_nothing_else(module, llama, tmp_path):
    """Over the whole grid of options, against vLLM's own check of the files that are written."""
    helper = pytest.importorskip("vllm.lora.peft_helper", reason="needs the extra serve or serve-cpu").PEFTHelper
    ceilings = get_args(pytest.importorskip("vllm.config.lora").MaxLoRARanks)
    assert ceilings == lora.VLLM_RANKS
    inits = get_args(module.Options.model_fields["init"].annotation)
    facts, base, seen = facts_of(llama), loading.load_base_model(found(llama)), set()
    for init, dora, rslora in itertools.product(inits, (False, True), (False, True)):
        if dora and init in ("pissa", "olora"):
            continue  # refused by resolve
        options = module.resolve(module.Options(rank=4, init=init, dora=dora, rslora=rslora), facts, {})
        folder = tmp_path / f"{init}-{dora}-{rslora}"
        model = module.apply(copy.deepcopy(base), options, seed=0, folder=folder)
        module.save(model, options, folder / "adapter", start=folder)
        saved = json.loads((folder / "adapter" / "adapter_config.json").read_text())
        for rank in (1, 4, 8, 9, 128, 256, 257, 300, 320, 321, 512, 513):
            asked = options.model_copy(update={"rank": rank})
            config = {**saved, "r": rank * saved["r"] // 4}
            taken = [c for c in ceilings if vllm_takes(helper, config, c)]
            assert lora.vllm_max_lora_rank(asked) == (taken[0] if taken else None), asked
            assert (module.serving(asked) == "vllm") is bool(taken)
            seen.add(module.serving(asked))
    assert seen == {"vllm", "convertible", "merge"}


def vllm_takes(helper, config: dict, max_lora_rank: int) -> bool:
    try:
        helper.from_dict(config).validate_legal(SimpleNamespace(max_lora_rank=max_lora_rank))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt", "gpt_neox", "gemma2", "qwen3_moe", "mixtral"])
@pytest.mark.parametrize("rank", [1, 4])
def test_trainable_parameters_follow_the_formula(family, rank, tmp_path):
    folder = tiny_base(tmp_path / "base", family)
    facts = facts_of(folder)
    options = lora.resolve(Options(rank=rank), facts, {})
    expected = sum(
        rank * sum(shape)
        for name, shape in facts.linear_shapes.items()
        if facts.is_target(name, options.target_modules)
    )
    model = wrapped(folder, tmp_path, rank=rank)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected > 0
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_scale_is_alpha_over_rank_or_its_root(llama, tmp_path):
    for rslora, expected in ((False, 32 / 4), (True, 32 / math.sqrt(4))):
        model = wrapped(llama, tmp_path, rank=4, alpha=32.0, rslora=rslora)
        scales = {
            module.scaling["default"]
            for module in model.modules()
            if isinstance(getattr(module, "scaling", None), dict)
        }
        assert scales == {expected}


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa", "olora"])
def test_every_start_is_the_base(init, llama, tmp_path):
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        before = loading.load_base_model(found(llama)).eval()(ids).logits
        after = wrapped(llama, tmp_path, rank=4, init=init).eval()(ids).logits
    # orthogonal starts A and B in subspaces that cancel; pissa and olora move a part of the base into the adapter
    torch.testing.assert_close(after, before, atol=2e-5, rtol=0)


def test_equal_seeds_give_equal_starts(llama, tmp_path):
    one, two = (dict(wrapped(llama, tmp_path, rank=4).named_parameters()) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_loraplus_has_two_learning_rates_and_the_weight_decay(llama, tmp_path):
    model = wrapped(llama, tmp_path, rank=4)
    options = Options(rank=4, alpha=32.0, loraplus_ratio=16.0)
    optimizer = lora.optimizer(
        model,
        options,
        optimizer_class=torch.optim.AdamW,
        optimizer_kwargs={"lr": 1e-4, "betas": (0.8, 0.9), "eps": 1e-7},
        weight_decay=0.05,
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {
        names[id(parameter)]: (group["lr"], group["weight_decay"], group["betas"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(rates) == trainable
    for name, (rate, decay, betas) in rates.items():
        assert rate == pytest.approx(16e-4 if "lora_B" in name else 1e-4)
        assert decay == 0.05
        assert betas == (0.8, 0.9)
    assert (
        lora.optimizer(
            model, Options(rank=4), optimizer_class=torch.optim.AdamW, optimizer_kwargs={"lr": 1}, weight_decay=0.0
        )
        is None
    )


def test_auto_values_come_with_reasons(llama):
    reasons = {}
    resolved = lora.resolve(Options(), facts_of(llama), reasons)
    assert (resolved.rank, resolved.alpha) == (16, 32.0)  # the key projection has 16 outputs
    assert reasons["options.rank"].startswith("16: ")
    assert "allows 16" in reasons["options.rank"]
    assert reasons["options.alpha"].startswith("32: ")
    given = {}
    lora.resolve(Options(rank=2, alpha=3.0), facts_of(llama), given)
    assert given == {}


@pytest.mark.parametrize(
    ("model_type", "hidden", "rate"),
    [
        ("llama", 4096, 2.9e-4),  # 5e-4 * (2000 / 4096) ** 0.781
        ("qwen3", 4096, 4.7e-4),  # 5e-4 * (2000 / 4096) ** 0.0775
        ("llama", 2048, 4.9e-4),
        ("gemma3_text", 2304, 2e-4),
        ("llama", 128, 2e-3),
        ("gpt2", 128, 2e-3),
    ],
)
def test_learning_rate_follows_the_published_fit(model_type, hidden, rate):
    facts = BaseFacts(model_type, hidden, 2048, 1, {"a": (1, 1)})
    found_rate, why = lora.learning_rate(facts)
    assert found_rate == rate
    assert why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 17}, r"options.rank = 17: must be at most 16"),
        ({"target_modules": ["query"]}, "query matches no layer.*q_proj"),
        ({"target_modules": ["q_proj", "querry"]}, "querry matches no layer"),
        ({"target_modules": []}, "matches no layer"),
        ({"target_modules": ""}, "matches no layer"),
        ({"target_modules": "q_proj"}, "matches no layer"),  # one text is a regular expression for the whole name
        ({"target_modules": ".*(q_proj"}, "not a valid regular expression"),
        ({"target_modules": ["lm_head"]}, "output head, which is never adapted"),
        ({"target_modules": ".*lm_head"}, "output head, which is never adapted"),
        ({"target_modules": ".*(lm_head|q_proj)"}, "also matches lm_head"),
        ({"target_modules": ".*"}, "also matches model"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens matches no layer"),
        ({"init": "orthogonal", "rank": 3}, "needs an even rank"),
        ({"init": "pissa", "dora": True}, "untouched base"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_refused_before_weights_are_read(options, message, llama):
    with pytest.raises(BaseModelError, match=message):
        lora.resolve(Options(**options), facts_of(llama), {})


def test_rank_may_grow_when_the_narrow_layers_are_left_out(llama):
    resolved = lora.resolve(Options(rank=32, target_modules=["q_proj", "up_proj"]), facts_of(llama), {})
    assert resolved.rank == 32


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_stacked_experts_stay_as_they_are_and_that_is_said(family, tmp_path):
    facts = facts_of(tiny_base(tmp_path / "base", family))
    reasons = {}
    resolved = lora.resolve(Options(), facts, reasons)
    assert resolved.target_modules == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert "experts" in reasons["options.target_modules"]
    with pytest.raises(BaseModelError, match="matches no layer"):
        lora.resolve(Options(target_modules=["experts"]), facts, {})


def test_olora_refuses_transposed_layers(tmp_path):
    folder = tiny_base(tmp_path / "base", "gpt2")
    with pytest.raises(BaseModelError, match="transposed layers of gpt2"):
        wrapped(folder, tmp_path, rank=4, init="olora")
    assert wrapped(folder, tmp_path, rank=4, init="pissa") is not None


def test_served_by():
    assert lora.serving(Options()) == "vllm"
    assert lora.serving(Options(rslora=True, init="pissa")) == "vllm"
    assert lora.serving(Options(dora=True)) == "convertible"
    assert lora.serving(Options(rank=512)) == "vllm"
    assert lora.serving(Options(rank=513)) == "merge"
    assert lora.serving(Options(rank=257, init="pissa")) == "merge"  # saved with rank 514


def test_saved_adapter_leaves_no_start_behind(llama, tmp_path):
    options = lora.resolve(Options(rank=4, init="pissa"), facts_of(llama), {})
    model = lora.apply(loading.load_base_model(found(llama)), options, seed=0, folder=tmp_path)
    assert (tmp_path / "start").is_dir()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.01)
    lora.save(model, options, tmp_path / "adapter", start=tmp_path)
    assert not (tmp_path / "start").exists()
    assert all(
        torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "adapter/adapter_model.safetensors").values()
    )


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    return seeing_base(tmp_path_factory.mktemp("llava"), "llava")


@pytest.mark.parametrize("parts", [["language"], ["vision"], ["projector"], ["language", "projector", "vision"]])
def test_of_a_base_that_sees_only_the_layers_of_the_named_parts_are_adapted(parts, llava, tmp_path):
    """The language model and the vision tower both have layers q_proj, k_proj and v_proj."""
    model = wrapped(llava, tmp_path, rank=2, train=parts)
    trained = {name.split(".lora_")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {part_of(name) for name in trained} == set(parts)
    linear = [name for name in facts_of(llava).linear_shapes if part_of(name) in parts]
    assert len(trained) == len(linear)


def test_names_of_layers_mean_those_of_the_named_parts(llava, tmp_path):
    model = wrapped(llava, tmp_path, rank=2, target_modules=["q_proj"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("language_model" in name and ".q_proj." in name for name in trained)


@pytest.mark.bad_input
def test_parts_that_a_base_has_not_are_refused(llama, tmp_path):
    with pytest.raises(BaseModelError, match="has a language model only"):
        lora.resolve(Options(train=["vision"]), facts_of(llama), {})
    gemma3 = seeing_base(tmp_path, "gemma3")
    with pytest.raises(BaseModelError, match=r"no layer of the part projector"):  # its projector is no linear layer
        lora.resolve(Options(train=["projector"]), facts_of(gemma3), {})
