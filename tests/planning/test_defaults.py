"""``auto`` becomes numbers: by hand for small cases, with a reason that is true."""

import pytest

from mlflow_finetune_plugin.base_models.attention import PACKS, AttentionFacts, resolve_attention
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.config.sections import TrainingSettings
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.planning.defaults import (
    resolve_batching,
    resolve_max_length,
    resolve_training,
    validation_fraction,
)


def facts(context: int | None = 512) -> BaseFacts:
    return BaseFacts("llama", 64, context, 1000, {"model.layers.0.q_proj": (64, 64), "model.layers.0.fc": (8, 64)})


def resolved(
    rows: int = 1000,
    *,
    gpu: bool = False,
    has_bf16: bool = False,
    half: bool = False,
    processes: int = 1,
    **given: object,
):  # type: ignore[no-untyped-def]
    reasons: dict[str, str] = {}
    settings = resolve_training(
        TrainingSettings(**given),
        learning_rate=(2e-4, "a table says so"),
        rows=rows,
        processes=processes,
        on_gpu=gpu,
        has_bf16=has_bf16,
        half_precision_base=half,
        max_length=128,
        reasons=reasons,
    )
    batching = resolve_batching(settings, facts(), longest_row=50, reasons=reasons)
    return settings.model_copy(update=batching), reasons


@pytest.mark.parametrize(
    ("model_type", "batching", "why"),
    [
        ("llama", "packed", "attention ends at each row's borders"),
        ("mamba", "grouped", "packing is not tested with mamba"),
    ],
)
def test_rows_are_packed_where_that_was_tried(model_type, batching, why):
    reasons: dict[str, str] = {}
    training = TrainingSettings(per_device_train_batch_size=4)
    base = BaseFacts(model_type, 64, 512, 1000, {})
    chosen = resolve_batching(training, base, longest_row=50, reasons=reasons)
    assert chosen == {"batching": batching, "max_batch_tokens": 200}
    assert why in reasons["training.batching"]
    assert ("mamba" in PACKS) is False


def test_nothing_stays_auto_and_each_choice_has_its_reason():
    settings, reasons = resolved()
    values = settings.model_dump()
    assert "auto" not in values.values()
    autos = {key for key, value in TrainingSettings().model_dump().items() if value == "auto"} - {"max_length"}
    assert {key.removeprefix("training.") for key in reasons} == autos
    for key in autos:
        assert reasons[f"training.{key}"].startswith(f"{values[key]}: ")
    assert reasons["training.learning_rate"] == "0.0002: a table says so"


def test_what_is_given_is_kept_without_a_reason():
    given = {
        "num_train_epochs": 7.0,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 5,
        "warmup_steps": 2.0,
        "gradient_checkpointing": True,
        "bf16": True,
        "logging_steps": 9,
        "batching": "padded",
        "max_batch_tokens": 100,
        "save_steps": 9,
    }
    settings, reasons = resolved(**given)
    assert reasons == {}
    assert settings.model_dump().items() >= given.items()


@pytest.mark.parametrize(
    ("rows", "gpu", "given", "expected"),
    [
        # rows: (batch, accumulation, epochs, warm-up, logging)
        (1000, False, {}, (16, 1, 3.0, 10.0, 1)),  # 63 steps an epoch, 189 in all, 5 % is 9.45
        (1000, True, {}, (8, 2, 3.0, 10.0, 1)),
        (5, False, {}, (5, 1, 3.0, 1.0, 1)),  # 1 step an epoch
        (1, False, {}, (1, 1, 3.0, 1.0, 1)),
        (100_000, False, {}, (16, 1, 1.0, 313.0, 62)),  # 6250 steps, one pass
        (1000, False, {"max_steps": 1}, (16, 1, 1.0, 0.0, 1)),  # the only step is no warm-up, whose rate is 0
        (1000, False, {"max_steps": 100}, (16, 1, 2.0, 5.0, 1)),  # 63 steps an epoch
        (40, False, {"per_device_train_batch_size": 4}, (4, 4, 3.0, 1.0, 1)),
        (40, False, {"per_device_train_batch_size": 64}, (64, 1, 3.0, 1.0, 1)),
        (3, False, {"per_device_train_batch_size": 1}, (1, 3, 3.0, 1.0, 1)),  # accumulation never beyond the rows
    ],
)
def test_sizes_by_hand(rows, gpu, given, expected):
    settings, _ = resolved(rows, gpu=gpu, **given)
    found = (
        settings.per_device_train_batch_size,
        settings.gradient_accumulation_steps,
        settings.num_train_epochs,
        settings.warmup_steps,
        settings.logging_steps,
    )
    assert found == expected


@pytest.mark.parametrize(
    ("gpu", "bf16", "half", "value", "why"),
    [
        (False, False, False, False, "no GPU with bfloat16"),
        (False, False, True, False, "no GPU with bfloat16"),
        (True, False, True, False, "no GPU with bfloat16"),
        (True, True, False, False, "the base is held in float32"),
        (True, True, True, True, "the GPU supports it"),
    ],
)
def test_bf16_and_its_true_reason(gpu, bf16, half, value, why):
    settings, reasons = resolved(gpu=gpu, has_bf16=bf16, half=half)
    assert settings.bf16 is value
    assert reasons["training.bf16"] == f"{value}: {why}"


@pytest.mark.parametrize(("context", "expected"), [(512, 512), (2048, 2048), (131_072, 2048), (None, 2048)])
def test_max_length_is_the_context_up_to_2048(context, expected):
    reasons: dict[str, str] = {}
    assert resolve_max_length(TrainingSettings(), facts(context), reasons) == expected
    assert reasons["training.max_length"].startswith(f"{expected}: ")


def test_max_length_beyond_the_context_is_refused():
    with pytest.raises(BaseModelError, match=r"training\.max_length = 513: beyond the base's 512 positions"):
        resolve_max_length(TrainingSettings(max_length=513), facts(), {})
    assert resolve_max_length(TrainingSettings(max_length=512), facts(), {}) == 512
    assert resolve_max_length(TrainingSettings(max_length=9999), facts(None), {}) == 9999


@pytest.mark.parametrize(
    ("targets", "matches"),
    [
        ("all-linear", True),
        (["q_proj"], True),
        (["layers.0.q_proj"], True),
        (["model.layers.0.q_proj"], True),
        (["proj"], False),
        ([], False),
        (r".*q_proj", True),
        (r"q_proj", False),
        (r".*\.(q|v)_proj", True),
    ],
)
def test_names_match_as_in_peft(targets, matches):
    assert facts().is_target("model.layers.0.q_proj", targets) is matches


def attention(**facts):
    given = {
        "model_type": "llama",
        "soft_caps": False,
        "head_size": 128,
        "supports_sdpa": True,
        "half_precision": True,
        "capability": (9, 0),
        "installed": frozenset(["flash_attention_2", "flash_attention_3"]),
    }
    return AttentionFacts(**{**given, **facts})


@pytest.mark.parametrize(
    ("facts", "kernel", "why"),
    [
        ({}, "flash_attention_3", "installed"),
        ({"capability": (8, 6)}, "flash_attention_2", "installed"),
        ({"capability": (7, 5)}, "sdpa", "needs a GPU of compute capability 8.0"),
        ({"capability": None}, "sdpa", "no CUDA GPU for flash attention"),
        ({"installed": frozenset()}, "sdpa", "flash_attention_2 flash-attn is not installed"),
        ({"half_precision": False}, "sdpa", "needs base_model.dtype"),
        ({"head_size": 320}, "sdpa", "this base has 320"),
        ({"model_type": "unheard_of"}, "sdpa", "not tested with unheard_of"),
        ({"soft_caps": True}, "flash_attention_3", "installed"),
        ({"soft_caps": True, "capability": None}, "eager", "soft capping of attention scores"),
        ({"supports_sdpa": False, "capability": None}, "eager", "no other kernel for llama"),
        ({"model_type": "gpt_oss", "supports_sdpa": False}, "eager", "no other kernel for gpt_oss"),
    ],
)
def test_attention_kernel_is_chosen_with_its_reason(facts, kernel, why):
    reasons: dict[str, str] = {}
    assert resolve_attention("auto", attention(**facts), reasons) == kernel
    assert why in reasons["base_model.attn_implementation"]


@pytest.mark.parametrize(
    ("wanted", "facts", "why"),
    [
        ("flash_attention_2", {"installed": frozenset()}, "flash-attn is not installed; fix: use auto"),
        ("flash_attention_3", {"capability": (8, 0)}, "compute capability 9.0; fix"),
        ("flash_attention_2", {"capability": None}, "needs a CUDA GPU; fix"),
        (
            "flash_attention_3",
            {"model_type": "gpt_oss"},
            "does not compute the attention sinks of gpt_oss; fix: use auto",
        ),
        ("sdpa", {"soft_caps": True}, "soft capping, which would change the model; fix: use eager"),
        ("sdpa", {"supports_sdpa": False}, "transformers has no sdpa for llama; fix: use eager"),
    ],
)
def test_attention_kernel_that_does_not_fit_is_refused(wanted, facts, why):
    with pytest.raises(BaseModelError, match=why):
        resolve_attention(wanted, attention(**facts), {})


def test_attention_kernel_that_was_asked_for_is_taken():
    for wanted in ("sdpa", "eager", "flash_attention_2"):
        reasons: dict[str, str] = {}
        assert resolve_attention(wanted, attention(), reasons) == wanted
        assert not reasons


@pytest.mark.parametrize(("rows", "processes"), [(1000, 1), (1000, 2), (1000, 4), (1000, 8), (10, 2), (3, 8)])
def test_effective_batch_does_not_depend_on_how_many_share_it(rows, processes):
    (alone, _), (shared, _) = resolved(rows, gpu=True), resolved(rows, gpu=True, processes=processes)
    batch = [
        s.per_device_train_batch_size * s.gradient_accumulation_steps * n for s, n in ((alone, 1), (shared, processes))
    ]
    if rows >= 10:
        assert min(batch[0], rows) == min(batch[1], rows)
    assert (shared.num_train_epochs, shared.warmup_steps) == (alone.num_train_epochs, alone.warmup_steps) or rows < 10


@pytest.mark.parametrize(
    ("settings", "configured", "fraction"),
    [
        ({}, None, None),
        ({"eval_steps": 5}, None, None),
        ({"eval_steps": 5}, 0.2, 0.2),
        ({"eval_steps": 5, "load_best_model_at_end": True}, None, 0.1),
        ({"eval_steps": 5, "early_stopping_patience": 2}, None, 0.1),
        ({"eval_steps": 5, "early_stopping_patience": 2}, 0.3, 0.3),
    ],
)
def test_weights_are_never_chosen_by_the_rows_that_prove_them(settings, configured, fraction):
    assert validation_fraction(configured, TrainingSettings(**settings)) == fraction
