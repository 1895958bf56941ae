"""Hold one base in memory, and for every adapter a tree of modules that shares the base's weights.

PEFT puts its layers into a tree and switches adapters in place. Here nothing is switched, because each adapter has a tree.
Adapters of any method can be loaded together, and while others answer; they are freed when their last sequence has ended. A
tree costs its Python objects and the adapter's weights.
"""

from __future__ import annotations

import copy
import gc
import importlib
import inspect
import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftConfig, PeftModel, PeftType
from safetensors import SafetensorError, safe_open
from transformers import DynamicCache, PreTrainedModel

from mlflow_finetune_plugin.errors import ConfigError, StoreError
from mlflow_finetune_plugin.evaluation.virtual_tokens import virtual_token_ids
from mlflow_finetune_plugin.methods import load_method, method_module, method_names
from mlflow_finetune_plugin.serving.transformers_engine.memory import check_room
from mlflow_finetune_plugin.serving.transformers_engine.prompts import NO_PICTURES, ShownPictures

logger = logging.getLogger(__name__)

_PROMPT_METHODS = (PeftType.PROMPT_TUNING, PeftType.P_TUNING, PeftType.PREFIX_TUNING)
# their output depends on more than the tokens: a task id, a second pass, an invocation sequence inside the prompt
_UNSERVED_METHODS = frozenset(("XLORA", "POLY", "ADAPTION_PROMPT", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE"))
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


class Start(NamedTuple):
    """What a pass over a prompt computed.

    Attributes:
        logits: The last logits, (keep, vocab).
        cache: The keys and values of the prompt.
        position_shift: What the position of each later token is away from the number of tokens before it. It is not 0 for families
            in which a picture takes fewer positions than tokens (M-RoPE, arXiv 2409.12191).
    """

    logits: torch.Tensor
    cache: DynamicCache
    position_shift: int = 0


class Tree:
    """The base, or the base with one adapter. ``path`` is the adapter's folder."""

    def __init__(
        self, model: PreTrainedModel, *, peft_model: PeftModel | None = None, path: Path | None = None
    ) -> None:
        self.model, self.path = model, path
        self._prompt_model = peft_model if peft_model and peft_model.active_peft_config.is_prompt_learning else None
        self._virtual_token_ids = virtual_token_ids(model)
        soft_prompt = self._prompt_model.active_peft_config.num_virtual_tokens if self._prompt_model else 0
        self.virtual_tokens: int = len(self._virtual_token_ids) + soft_prompt
        is_prefix = peft_model is not None and peft_model.active_peft_config.peft_type == PeftType.PREFIX_TUNING
        self._tokens_before = (
            len(self._virtual_token_ids) if is_prefix else self.virtual_tokens
        )  # in a row's own inputs
        parameters = inspect.signature(model.forward).parameters
        self._has_positions = "position_ids" in parameters
        self._keeps_logits = "logits_to_keep" in parameters
        # LLM.int8() picks its outlier columns from all rows together, so that rows of a batch would change each other.
        self.may_batch = self._has_positions and not getattr(model, "is_loaded_in_8bit", False)

    @property
    def device(self) -> torch.device:
        """The device of the token ids."""
        return self.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    @property
    def vocabulary_size(self) -> int:
        """The number of token ids that have an embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def start(self, ids: list[int], *, keep: int, pictures: ShownPictures = NO_PICTURES) -> Start:
        """Read a prompt, with its pictures, after the adapter's virtual tokens."""
        inputs = torch.tensor([[*self._virtual_token_ids, *ids]], device=self.device)  # (1, virtual + seq)
        beside = self._beside(pictures)
        self._forget_positions()
        if self._prompt_model is None:
            return self._start(DynamicCache(config=self.model.config), keep, input_ids=inputs, **beside)
        prompt = self._prompt_model.get_prompt(batch_size=1)
        if not isinstance(prompt, torch.Tensor):  # prefix tuning: keys and values
            return self._start(prompt, keep, input_ids=inputs, **beside)
        embedded = self.model.get_input_embeddings()(inputs)
        embedded = torch.cat([prompt.to(embedded.dtype), embedded], dim=1)  # (1, virtual + seq, hidden)
        return self._start(DynamicCache(config=self.model.config), keep, inputs_embeds=embedded, **beside)

    def resume(self, cache: DynamicCache, ids: list[int], *, keep: int, start: int) -> torch.Tensor:
        """Read more tokens of a sequence, the first at the position ``start``. Returns the last logits (keep, vocab)."""
        more: dict[str, Any] = {}
        if self._has_positions:
            more["position_ids"] = torch.arange(start, start + len(ids), device=self.device)[None]
        return self._read(cache, keep, input_ids=torch.tensor([ids], device=self.device), **more)

    def step(
        self, cache: DynamicCache, tokens: list[int], lengths: list[int], shifts: list[int] | None = None
    ) -> torch.Tensor:
        """Read one token of every row after its ``lengths`` cached tokens, padded on the left. Returns logits (rows, vocab).

        Args:
            cache: The keys and values of all rows.
            tokens: The token of each row.
            lengths: The number of cached tokens of each row.
            shifts: The ``position_shift`` of each row; None for none.
        """
        inputs = torch.tensor([[token] for token in tokens], device=self.device)  # (rows, 1)
        more: dict[str, Any] = {}
        width = max(lengths)
        if self._has_positions:
            positions = [length + shift for length, shift in zip(lengths, shifts or [0] * len(lengths), strict=True)]
            more["position_ids"] = torch.tensor([[position] for position in positions], device=self.device)
        if min(lengths) < width:
            column = torch.arange(width + 1, device=self.device)
            padding = torch.tensor([width - length for length in lengths], device=self.device)
            more["attention_mask"] = (column[None, :] >= padding[:, None]).long()  # (rows, width + 1)
        output = self.model(input_ids=inputs, past_key_values=cache, use_cache=True, **more)
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _start(self, cache: DynamicCache, keep: int, **inputs: Any) -> Start:
        logits = self._read(cache, keep, **inputs)
        shift = getattr(self.model.base_model, "rope_deltas", None)
        return Start(logits, cache, 0 if shift is None else int(shift))

    def _read(self, cache: DynamicCache, keep: int, **inputs: Any) -> torch.Tensor:
        more = {"logits_to_keep": keep} if self._keeps_logits else {}
        output = self.model(past_key_values=cache, use_cache=True, **inputs, **more)
        return output.logits[0, -keep:]  # type: ignore[no-any-return]

    def _beside(self, pictures: ShownPictures) -> dict[str, torch.Tensor]:
        """Return the model's inputs beside the tokens, pixels in its precision. Virtual tokens are of the type of text."""
        inputs = {}
        for name, value in pictures.tensors.items():
            if name.endswith("token_type_ids"):  # (1, tokens)
                value = torch.nn.functional.pad(value, (self._tokens_before, 0))
            inputs[name] = value.to(self.device, self.model.dtype if value.is_floating_point() else value.dtype)
        return inputs

    def _forget_positions(self) -> None:
        """Drop what the model remembers of the last prompt: models with M-RoPE hold its shift, also for a prompt without pictures."""
        if hasattr(self.model.base_model, "rope_deltas"):
            self.model.base_model.rope_deltas = None


class Base:
    """The weights of a base, in memory once. ``tree`` answers as the base; ``grow`` creates an adapter's tree."""

    def __init__(self, model: PreTrainedModel) -> None:
        learn_methods()
        model.requires_grad_(False).eval()
        with torch.inference_mode():  # bitsandbytes moves its int8 statistics out of the weights at the first forward
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.get_input_embeddings().weight.device))
        self._template = model  # never run again, so that it can be copied while its copies run
        self.tree = Tree(self._copy(private=()))

    def grow(self, path: Path) -> Tree:
        """Return the tree of the adapter in a folder. Raises StoreError if it is not an adapter of this base, or too large."""
        config, keys = _read_adapter(path)
        check_room(path / "adapter_model.safetensors", self._template.device)
        private = self._overwritten(config, keys)
        try:
            peft_model = PeftModel.from_pretrained(self._copy(private=private), str(path), config=config)
            read = peft_model.load_adapter(
                str(path), peft_model.active_adapter
            )  # again, for its report of missing names
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
            raise StoreError(f"{path}: PEFT cannot put this adapter on the base: {error}") from error
        unknown = [] if config.is_prompt_learning else read.unexpected_keys  # PEFT reads a prompt apart, and strictly
        for fault, names in (("missing", read.missing_keys), ("unknown", unknown)):
            if names:  # PEFT would continue with random weights
                raise StoreError(f"{path}: {len(names)} weights are {fault} ({names[0]}); fix: save the adapter again")
        shared = {id(value) for value in _held_values(self._template)}
        # All of an engine has one precision, but PEFT loads adapters in float32.
        for parameter in peft_model.parameters():
            if id(parameter) not in shared and parameter.is_floating_point():
                parameter.data = parameter.data.to(self._template.dtype)
        peft_model.requires_grad_(False).eval()
        return Tree(peft_model.get_base_model(), peft_model=peft_model, path=path)

    def _copy(self, *, private: Collection[int]) -> PreTrainedModel:
        shared = {id(value): value for value in _held_values(self._template) if id(value) not in private}
        return copy.deepcopy(self._template, shared)

    def _overwritten(self, config: PeftConfig, keys: Collection[str]) -> set[int]:
        """Return the ids of the weights that loading this adapter overwrites. Its tree gets copies of them."""
        if str(getattr(config, "init_lora_weights", "")).startswith(_BASE_CHANGING_INITS):
            logger.warning(
                "%s changes the base's weights, so this adapter needs a copy of all of them; fix: save it converted to plain LoRA",
                config.init_lora_weights,
            )
            return {id(value) for value in _held_values(self._template)}
        saved_modules = tuple(getattr(config, "modules_to_save", None) or ())  # PEFT copies these itself
        overwritten = {key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in keys}
        named = (
            self._template.named_parameters(remove_duplicate=False),
            self._template.named_buffers(remove_duplicate=False),
        )
        return {
            id(tensor)
            for tensors in named
            for name, tensor in tensors
            if name in overwritten and not name.rpartition(".")[0].endswith(saved_modules or ("\0",))
        }


def learn_methods() -> None:
    """Import the files in which methods of this package and of third parties register themselves with PEFT."""
    for name in method_names("adaptation"):
        try:
            adaptation = load_method("adaptation", name)
            for file in adaptation.MODEL_CODE:
                importlib.import_module(".".join(filter(None, (method_module(adaptation).__package__, file.stem))))
        except (ConfigError, ImportError) as error:
            logger.warning("adapters of the method %s will be refused: %s", name, error)


def collect_dropped_trees() -> None:
    """Free unloaded adapters now, because their objects refer to each other and Python would free them much later.

    Call ``gc.freeze()`` once the base is loaded. Otherwise this scans all of torch, and no other thread runs for 0.4 s.
    """
    gc.collect()


def _held_values(model: torch.nn.Module) -> Iterator[Any]:
    """Yield every tensor of every module, and bitsandbytes' quantisation states, which hold tensors too."""
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, torch.Tensor) or type(value).__name__ == "QuantState":
                yield value
            elif type(value).__name__ == "MatmulLtState":  # its layer writes to it, so only its tensors are shared
                yield from (inner for inner in vars(value).values() if isinstance(inner, torch.Tensor))


def _read_adapter(path: Path) -> tuple[PeftConfig, list[str]]:
    """Return the config and the names of the saved tensors."""
    weights = path / "adapter_model.safetensors"
    if not (path / "adapter_config.json").is_file() or not weights.is_file():
        raise FileNotFoundError(
            f"{path}: no adapter; fix: use a folder with adapter_config.json and adapter_model.safetensors"
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
        with safe_open(weights, framework="pt") as file:
            keys = list(file.keys())
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StoreError(f"{path}: PEFT cannot read this adapter: {error}") from error
    reason = why_not_served(config)
    if reason is not None:
        raise StoreError(f"{path}: {reason}")
    config.inference_mode = True
    return config, keys


def why_not_served(config: PeftConfig) -> str | None:
    """Return why the engine cannot serve adapters of this kind, with a fix; None if it can."""
    method = str(getattr(config.peft_type, "value", config.peft_type))
    if method in _UNSERVED_METHODS or getattr(config, "alora_invocation_tokens", None):
        return f"the Transformers engine cannot serve {method} adapters of this kind; fix: use plain LoRA"
    if config.is_prompt_learning and config.peft_type not in _PROMPT_METHODS:
        return f"the Transformers engine cannot serve {method}; fix: use prompt tuning, p-tuning or prefix tuning"
    return None
