"""PEFT's methods: each row of the table trains, is saved, loads back, and is refused where PEFT cannot do it."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PeftType, load_peft_weights, set_peft_model_state_dict
from pipeline_runs import config_for, run_pipeline
from safetensors.torch import load_file
from tiny_bases import tiny_base

from mlflow_finetune_plugin.adaptations._peft import METHODS, MODULES, REFUSED
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.config.reference import methods_text
from mlflow_finetune_plugin.errors import BaseModelError, ConfigError
from mlflow_finetune_plugin.methods import load_method, method_names, precision_fault
from mlflow_finetune_plugin.planning.plan import make_plan
from mlflow_finetune_plugin.planning.step_trace import adapted_model
from mlflow_finetune_plugin.serving.versions.adapter_config import check_adapter_config

IDS = torch.arange(3, 43).reshape(2, 20)
NAMES = [method.name for method in METHODS]
ROWS = {method.name: method for method in METHODS}
ROUNDS_AT_ITS_START = {"hra"}
"""Its reflections cancel in pairs, and their product is the identity up to rounding."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function that writes a tiny base of a family once."""
    folders: dict[str, Path] = {}

    def get(family: str = "llama") -> Path:
        if family not in folders:
            folders[family] = tiny_base(tmp_path_factory.mktemp(family), family)
        return folders[family]

    return get


@functools.cache
def base_of(folder: Path, **settings: str) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder), **settings), {})


@functools.cache
def facts_of(base: loading.BaseModel) -> BaseFacts:
    return loading.describe(base)


@functools.cache
def _loaded(base: loading.BaseModel) -> torch.nn.Module:
    return loading.load_base_model(base)


def load(base: loading.BaseModel) -> torch.nn.Module:
    """Return a model of its own, a copy of one that is loaded once for this module."""
    return copy.deepcopy(_loaded(base))


def logits(model) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits.float()


def train(model, rate: float, steps: int = 3) -> list[float]:
    """Train a few steps on ``IDS``; return the losses."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    losses = []
    model.train()
    for _ in range(steps):
        loss = model(IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_starts_as_the_base_trains_loads_back_merges_and_continues(name, bases, tmp_path):
    adaptation, base = load_method("adaptation", name), base_of(bases())
    facts, reasons = facts_of(base), {}
    options = adaptation.resolve(adaptation.Options(), facts, reasons)
    autos = [key for key, value in adaptation.Options().model_dump().items() if value == "auto"]
    assert {f"options.{key}" for key in autos} <= reasons.keys()
    assert "auto" not in options.model_dump().values()

    plain = load(base)
    alone, frozen = logits(plain), {id(parameter) for parameter in plain.parameters()}
    model = adaptation.apply(plain, options, seed=0, folder=tmp_path)
    atol = 1e-5 if name in ROUNDS_AT_ITS_START else 0
    torch.testing.assert_close(logits(model), alone, atol=atol, rtol=0)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    empty = adapted_model(base, adaptation, options, seed=0)  # as the plan wraps it, without weights
    assert empty.trainable == sum(parameter.numel() for parameter in trained)
    assert not frozen & set(map(id, trained))
    adaptation.save(model, options, tmp_path / "start", start=tmp_path)
    starts_in_the_base = ROWS[name].targets == "norms"
    assert adaptation.has_effect(load_file(tmp_path / "start" / "adapter_model.safetensors")) is starts_in_the_base

    losses = train(model, adaptation.learning_rate(facts)[0])
    assert losses[-1] < losses[0]
    answers = logits(model)
    assert not torch.equal(answers, alone)
    saved = tmp_path / "saved"
    adaptation.save(model, options, saved, start=tmp_path)
    assert sorted(path.name for path in saved.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert adaptation.has_effect(load_file(saved / "adapter_model.safetensors"))
    assert json.loads((saved / "adapter_config.json").read_text())["peft_type"] == name.upper()
    check_adapter_config(saved, name)

    again = PeftModel.from_pretrained(loading.load_base_model(base), saved).eval()
    torch.testing.assert_close(logits(again), answers, atol=1e-6, rtol=0)
    with again.disable_adapter():
        assert torch.equal(logits(again), alone)
    prompt = IDS[:1, :5]
    with torch.inference_mode():
        generated = again.generate(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=3, do_sample=False
        )
    assert generated.shape[1] > 5
    torch.testing.assert_close(logits(again.merge_and_unload(safe_merge=True)), answers, atol=1e-4, rtol=0)

    other = adaptation.apply(load(base), options, seed=7, folder=tmp_path)
    result = set_peft_model_state_dict(other, load_peft_weights(str(saved), device="cpu"))
    assert not result.unexpected_keys
    torch.testing.assert_close(logits(other), answers, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [method.name for method in METHODS if "bfloat16" in method.dtypes])
def test_a_base_in_half_precision_trains_in_float32(name, bases, tmp_path):
    adaptation, base = load_method("adaptation", name), base_of(bases(), dtype="bfloat16")
    facts = facts_of(base)
    options = adaptation.resolve(adaptation.Options(), facts, {})
    model = adaptation.apply(load(base), options, seed=0, folder=tmp_path)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    losses = train(model, adaptation.learning_rate(facts)[0], steps=2)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("name", "quantization"), [(method.name, kind) for method in METHODS for kind in method.quantizations]
)
def test_trains_on_the_quantised_bases_that_the_table_names(name, quantization, bases, tmp_path):
    adaptation, base = load_method("adaptation", name), base_of(bases(), dtype="float32", quantization=quantization)
    facts = facts_of(base)
    options = adaptation.resolve(adaptation.Options(), facts, {})
    plain = load(base)
    alone = logits(plain)
    model = adaptation.apply(plain, options, seed=0, folder=tmp_path)
    assert torch.equal(logits(model), alone)
    for parameter in model.parameters():
        if parameter.requires_grad:  # as TRL does on a quantised base
            parameter.data = parameter.data.to(torch.bfloat16)
    losses = train(model, adaptation.learning_rate(facts)[0], steps=2)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", [method.name for method in METHODS if method.takes_transposed])
def test_transposed_layers_are_adapted_where_the_table_says_so(name, bases, tmp_path):
    adaptation, base = load_method("adaptation", name), base_of(bases("gpt2"))
    options = adaptation.resolve(adaptation.Options(), facts_of(base), {})
    plain = load(base)
    alone = logits(plain)
    model = adaptation.apply(plain, options, seed=0, folder=tmp_path)
    assert torch.equal(logits(model), alone)
    train(model, 1e-3, steps=1)
    adaptation.save(model, options, tmp_path / "saved", start=tmp_path)
    again = PeftModel.from_pretrained(load(base), tmp_path / "saved").eval()
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [method.name for method in METHODS if not method.takes_transposed])
def test_other_methods_refuse_transposed_layers(name, bases):
    adaptation = load_method("adaptation", name)
    with pytest.raises(BaseModelError, match=rf"{name} on gpt2: PEFT does not support .* transposed layers; fix: "):
        adaptation.resolve(adaptation.Options(), facts_of(base_of(bases("gpt2"))), {})


def test_stacked_experts_are_left_alone(bases, tmp_path):
    adaptation, base = load_method("adaptation", "vera"), base_of(bases("mixtral"))
    reasons: dict[str, str] = {}
    options = adaptation.resolve(adaptation.Options(), loading.describe(base), reasons)
    assert options.target_modules == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert "experts" in reasons["options.target_modules"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loha", {"rank": 64}, r"options.rank = 64: must be at most \d+, and .*_proj is \(.*\); fix: use 16"),
        ("hra", {"rank": 3}, r"options.rank = 3: HRA needs a multiple of 2; fix: use 4"),
        ("oft", {"block_size": 7}, r"options.block_size = 7: must divide the inputs of every layer.*fix: use 4"),
        ("road", {"group_size": 3}, r"must divide the outputs of every layer and be even.*fix: use 2"),
        ("c3a", {"block_size": 32}, r"must divide both sides of every layer.*fix: use 16"),
        ("shira", {"rank": 30}, r"options.rank = 30: must be at most 16"),
        ("gralora", {"rank": 5}, r"options.rank = 5: must be a multiple of options.blocks = 2; fix: use 4"),
        ("fourierft", {"frequencies": 5000}, r"options.frequencies = 5000: must be at most 1024"),
        ("vera", {"target_modules": ["qproj"]}, r"options.target_modules: qproj matches no layer of this base"),
        ("ln_tuning", {"target_modules": ["q_proj"]}, r"options.target_modules: q_proj matches no module"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_layers_are_refused_with_a_value_that_does(name, options, message, bases):
    adaptation = load_method("adaptation", name)
    with pytest.raises(BaseModelError, match=message):
        adaptation.resolve(adaptation.Options(**options), facts_of(base_of(bases())), {})


def test_a_base_in_a_precision_that_does_not_work_is_refused_before_weights_are_read(bases, tmp_path):
    config = config_for(
        tmp_path, bases(), adaptation="hra", base_model={"name": str(bases()), "quantization": "nf4"}
    ).model_copy(update={"options": {}})
    with pytest.raises(
        ConfigError, match=r"base_model.quantization = 'nf4': hra does not train on a base in nf4; fix: "
    ):
        make_plan(config)
    norms = load_method("adaptation", "ln_tuning")
    key, message = precision_fault("ln_tuning", norms, quantization=None, dtype="bfloat16") or ("", "")
    assert key == "dtype"
    assert message.endswith("fix: base_model.dtype: float32")
    assert precision_fault("miss", load_method("adaptation", "miss"), quantization="nf4", dtype="bfloat16") is None


def test_every_method_of_peft_is_offered_or_refused_with_a_reason():
    with_files = {"lora", "ia3"}
    known = {kind.value.lower() for kind in PeftType}
    assert known == with_files | set(NAMES) | set(REFUSED)
    assert not with_files & set(NAMES) | set(NAMES) & set(REFUSED)


@pytest.mark.parametrize(
    ("name", "options", "rank"),
    [
        ("vera", {"rank": 4}, 4),
        ("pvera", {"rank": 4}, 4),
        ("loha", {"rank": 2}, 4),
        ("hra", {"rank": 4}, 4),
        ("miss", {"rank": 4}, 4),
        ("delora", {"rank": 4}, 4),
        ("gralora", {"rank": 4}, 8),
    ],
)
def test_a_convertible_update_has_the_rank_that_the_table_states(name, options, rank, bases, tmp_path):
    adaptation, base = load_method("adaptation", name), base_of(bases())
    facts = facts_of(base)
    options = adaptation.resolve(adaptation.Options(**options), facts, {})
    assert adaptation.serving(options) == "convertible"
    model = adaptation.apply(load(base), options, seed=0, folder=tmp_path)
    train(model, adaptation.learning_rate(facts)[0])
    plain = load(base).state_dict()
    merged = model.merge_and_unload().state_dict()
    changed = [name for name in plain if not torch.equal(plain[name], merged[name])]
    assert changed
    for layer in changed:
        sizes = torch.linalg.svdvals(merged[layer] - plain[layer])
        assert sizes[rank:].max() < 1e-4 * sizes[0], layer


def test_the_methods_that_convert_are_those_above():
    assert {method.name for method in METHODS if method.serving == "convertible"} == {
        *("vera", "pvera", "loha", "hra", "miss", "delora", "gralora")
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_method_gives_its_reason(name):
    with pytest.raises(ConfigError, match=f"adaptation '{name}' of PEFT is not offered: ") as raised:
        load_method("adaptation", name)
    assert REFUSED[name] in str(raised.value)


def test_methods_lists_every_row_with_its_paper():
    text = methods_text()
    for method in METHODS:
        assert f"  {method.name:<12} {method.title}: {method.summary} ({method.paper})" in text
    assert set(MODULES) <= set(method_names("adaptation"))


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_has_a_reason_for_small_and_large_bases(name):
    for width in (64, 4096):
        rate, reason = load_method("adaptation", name).learning_rate(BaseFacts("llama", width, 2048, 1, {}))
        assert 1e-5 < rate < 1
        assert reason


@pytest.mark.train
def test_a_run_continues_a_version_of_a_row(bases, tmp_path, empty_store):
    config = config_for(
        tmp_path, bases(), adaptation="vera", training={"max_steps": 4, "learning_rate": 2e-2, "save_steps": None}
    ).model_copy(update={"options": {}})
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.reload_error() < 1e-5
    assert ran.run.data.tags["finetune.serving"] == "convertible"
    continued = config.model_copy(
        update={"start_from": "models:/bot/1", "training": config.training.model_copy(update={"seed": 5})}
    )
    again = run_pipeline(tmp_path / "again", empty_store, continued, store=ran.folder / "mlflow.db")
    first, start = (each.client.get_metric_history(each.run_id, "train/loss")[0].value for each in (ran, again))
    assert start < first
