"""Which engine a version gets, and what its reader is told to do where it is not the one asked for."""

from types import SimpleNamespace

import pytest

from mlflow_finetune_plugin.errors import EngineChoiceError, MissingExtraError, ServingError
from mlflow_finetune_plugin.serving.engines import commands
from mlflow_finetune_plugin.serving.engines.commands import choose_engine


def version(adaptation, serving):
    card = {"adaptation": adaptation, "serving": serving}
    return SimpleNamespace(model="bot", number="7", card=card, base={"quantization": None}, target_modules=(), rank=8)


@pytest.mark.parametrize(
    ("adaptation", "serving"), [("lora", "convertible"), ("ia3", "convertible"), ("lora", "merge")]
)
def test_what_converts_is_told_so(monkeypatch, adaptation, serving):
    monkeypatch.setattr(commands, "_has_vllm", lambda: True)
    with pytest.raises(
        ServingError,
        match=r"fix: convert it to plain LoRA with mlflow-finetune export models:/bot/7 --register, or use --engine auto",
    ):
        choose_engine("vllm", version(adaptation, serving))
    assert choose_engine("auto", version(adaptation, serving))[0] == "transformers"


def test_what_does_not_convert_is_not(monkeypatch):
    monkeypatch.setattr(commands, "_has_vllm", lambda: True)
    with pytest.raises(ServingError, match=r"fix: --engine auto$"):
        choose_engine("vllm", version("bottleneck", "transformers"))


@pytest.mark.parametrize(
    ("adaptation", "serving", "base", "reason"),
    [
        ("lora", "transformers", {"model_type": "gpt2"}, "vLLM loads no adapters on bases of the family gpt2"),
        ("qlora", "transformers", {}, "vLLM loads no adapters on bases of its family"),
        ("bottleneck", "transformers", {"model_type": "llama"}, "vLLM has no layers for the adaptation bottleneck"),
        ("lora", "convertible", {}, r"its options \(DoRA\) changes the weights in another way"),
        ("ia3", "convertible", {}, "ia3 changes the weights in another way"),
        ("lora", "merge", {}, "the rank of its adapter is above vLLM's limit of 512"),
    ],
)
def test_the_reason_is_the_true_one(monkeypatch, adaptation, serving, base, reason):
    monkeypatch.setattr(commands, "_has_vllm", lambda: True)
    served = version(adaptation, serving)
    served.card["base_model"] = base
    with pytest.raises(ServingError, match=f"engine vllm cannot serve it: .*{reason}; fix: "):
        choose_engine("vllm", served)


@pytest.mark.parametrize(("family", "has_experts"), [("qwen3_moe", True), ("gpt_oss", True), ("qwen3", False)])
@pytest.mark.parametrize("is_cuda", [True, False])
def test_experts_with_adapters_are_for_the_cuda_build_of_vllm(monkeypatch, family, has_experts, is_cuda):
    monkeypatch.setattr(commands, "_has_vllm", lambda: True)
    monkeypatch.setattr(commands, "_has_cuda_vllm", lambda: is_cuda)
    served = version("lora", "vllm")
    served.base["model_type"] = family
    if has_experts and not is_cuda:
        assert choose_engine("auto", served) == (
            "transformers",
            f"vLLM computes the experts of {family} with adapters on GPUs only",
        )
    else:
        assert choose_engine("auto", served)[0] == "vllm"


def test_converting_does_not_install_vllm(monkeypatch):
    monkeypatch.setattr(commands, "_has_vllm", lambda: False)
    with pytest.raises(MissingExtraError, match=r"fix: --engine auto$"):
        choose_engine("vllm", version("lora", "convertible"))


@pytest.mark.parametrize("has_vllm", [True, False])
@pytest.mark.parametrize("serving", ["vllm", "convertible"])
def test_what_reads_pictures_is_not_for_vllm_whether_it_is_installed_or_not(monkeypatch, has_vllm, serving):
    monkeypatch.setattr(commands, "_has_vllm", lambda: has_vllm)
    served = version("lora", serving)
    served.card["sees"] = True
    with pytest.raises(EngineChoiceError, match=r"its base reads pictures, which vLLM .*; fix: --engine auto$"):
        choose_engine("vllm", served)
    assert choose_engine("auto", served)[0] == "transformers"
