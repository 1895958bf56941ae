"""What the adaptations with virtual tokens share: options, start values and saving. Decision 28 says how virtual tokens work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from mlflow_finetune_plugin.adaptations import task_type
from mlflow_finetune_plugin.adaptations._adapter_files import write_adapter
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.methods import Serving
from mlflow_finetune_plugin.section import Auto, Section

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

MODEL_CODE = (Path(__file__).parent / "_virtual_token_tuner.py",)
"""Copied into every logged model and imported before its adapter is loaded."""

_ENOUGH = 20


class VirtualTokenOptions(Section):
    """Options of every adaptation with virtual tokens."""

    num_virtual_tokens: Annotated[int, Field(ge=1)] | Auto = Field(
        "auto",
        description="Virtual tokens in front of every prompt; auto: 20, at most an eighth of the base's context.",
    )
    init_text: str | None = Field(
        None,
        min_length=1,
        description="Text whose tokens the virtual tokens start as, repeated or cut to their number; "
        "without it they start as random tokens of the vocabulary.",
    )


def resolve_count(options: Any, base: BaseFacts, reasons: Reasons) -> int:
    """Return the number of virtual tokens. Raises BaseModelError where they leave no room in the base's context."""
    count, context = options.num_virtual_tokens, base.context_length
    if count == "auto":
        count = _ENOUGH if context is None else max(1, min(_ENOUGH, context // 8))
        reasons["options.num_virtual_tokens"] = f"{count}: " + (
            "more give little (Lester et al. 2021, arXiv 2104.08691, section 3.2)"
            if count == _ENOUGH
            else f"an eighth of the base's context of {context}"
        )
    if context is not None and count >= context // 2:
        raise BaseModelError(
            f"options.num_virtual_tokens = {count}: takes half of the base's context of {context} tokens or more; fix: use fewer"
        )
    return int(count)


def serving(options: VirtualTokenOptions) -> Serving:
    """Return ``transformers``: vLLM takes no adapters of virtual tokens, and they change no weight that could be merged."""
    return "transformers"


def virtual_tokens(options: VirtualTokenOptions) -> int:
    """Return the number of virtual tokens of resolved options."""
    return int(options.num_virtual_tokens)


def apply_tuner(
    model: PreTrainedModel,
    options: VirtualTokenOptions,
    *,
    seed: int,
    key_value_modules: list[str] | None = None,
    encoder_hidden_size: int | None = None,
) -> PeftModel:
    """Wrap the base. Until the first step, virtual tokens read as the tokens that they start as."""
    from peft import get_peft_model
    from transformers import set_seed

    from mlflow_finetune_plugin.internals.peft import check_tuners

    check_tuners()  # before the module of the tuner is loaded, whose classes build on PEFT's
    from mlflow_finetune_plugin.adaptations._virtual_token_tuner import VirtualTokensConfig

    set_seed(seed)
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    config = VirtualTokensConfig(
        target_modules=[embedding, *(key_value_modules or [])],
        embedding_module=embedding,
        key_value_modules=key_value_modules,
        num_virtual_tokens=int(options.num_virtual_tokens),
        encoder_hidden_size=encoder_hidden_size,
        task_type=task_type(model),
    )
    wrapped = get_peft_model(model, config)
    if model.get_input_embeddings().weight.device.type != "meta":
        _start_as(wrapped, _start_ids(model, options, seed))
    return wrapped  # type: ignore[no-any-return]


def save(model: PeftModel, options: VirtualTokenOptions, folder: Path, *, start: Path) -> None:
    """Write PEFT's two files. Where a network computes the rows, the computed ones are saved, and no network."""
    config = model.peft_config[model.active_adapter]
    state = {name: tensor for name, tensor in model.state_dict().items() if ".virtual_encoder." not in name}
    for name, layer in _layers_with_rows(model):
        state[f"{name}.virtual_rows.{model.active_adapter}"] = layer.rows(model.active_adapter).detach()
    hidden_size, config.encoder_hidden_size = config.encoder_hidden_size, None
    try:
        write_adapter(model, folder, state_dict=state, save_embedding_layers=False)
    finally:
        config.encoder_hidden_size = hidden_size


def _start_ids(model: PreTrainedModel, options: VirtualTokenOptions, seed: int) -> list[int]:
    """Return the ids of the tokens that the virtual tokens start as."""
    import torch

    count, vocabulary = int(options.num_virtual_tokens), int(model.get_input_embeddings().weight.shape[0])
    if options.init_text is None:
        return torch.randint(vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    ids = tokenizer(options.init_text, add_special_tokens=False).input_ids
    if not ids:
        raise BaseModelError(
            f"options.init_text = {options.init_text!r}: has no token; fix: use words, or leave it out"
        )
    return (ids * (count // len(ids) + 1))[:count]


def _start_as(model: PeftModel, ids: list[int]) -> None:
    """Let the virtual tokens read as these tokens do: the rows become what the modules of the base give for them."""
    import torch

    base, adapter = model.get_base_model(), model.active_adapter
    layers = [layer for _, layer in _layers_with_rows(model)]
    outputs: dict[Any, torch.Tensor] = {}
    hooks = [
        layer.base_layer.register_forward_hook(
            lambda _module, _inputs, output, layer=layer: outputs.__setitem__(layer, output)
        )
        for layer in layers
    ]
    was_training = base.training
    base.eval()
    try:
        with torch.no_grad():
            inputs = torch.tensor([ids], device=base.get_input_embeddings().weight.device)
            getattr(base, base.base_model_prefix)(input_ids=inputs, use_cache=False)
    finally:
        base.train(was_training)
        for hook in hooks:
            hook.remove()
    for layer in layers:
        layer.virtual_rows[adapter].data.copy_(outputs[layer].reshape(len(ids), -1))


def _layers_with_rows(model: PeftModel) -> list[tuple[str, Any]]:
    """Return the names and layers that have rows of the active adapter.

    They are found by their rows, not by their class: a logged model that was loaded in this process registered its copy of the tuner with
    PEFT, whose classes are other objects.
    """
    modules = model.named_modules()
    return [(name, module) for name, module in modules if model.active_adapter in getattr(module, "virtual_rows", ())]
