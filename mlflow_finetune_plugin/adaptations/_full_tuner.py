"""Full fine-tuning as a method of PEFT 0.21: config, layer and tuner, registered in PEFT's mappings on import.

Every trained module of the base gets a trained copy of its weights and computes with the copy. The base's weights stay as
they are, so base and trained model are one object and can be compared. This file is copied into every logged model that
needs it, so it imports nothing of mlflow-finetune:

    import _full_tuner
    model = PeftModel.from_pretrained(base, folder)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import peft.mapping
import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from torch.func import functional_call

PEFT_TYPE = "FULL"
_PREFIX = "tuned_"


@dataclass
class FullConfig(PeftConfig):
    """The modules whose own weights are trained."""

    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Module names or endings."}
    )
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained whole, such as a score head."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.target_modules = set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules


class FullLayer(nn.Module, BaseTunerLayer):
    """A module of the base that computes with trained weights. Every other attribute is the module's.

    A copy is trained in float32. Each forward pass rounds it to the precision in which it is saved, that of the base, so a
    loaded copy gives the same results as the trained one.
    """

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: FullConfig, owners: dict[int, FullLayer]
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self._replaced: dict[str, torch.Tensor] = {}
        self._saved_dtypes = {name: weight.dtype for name, weight in base_layer.named_parameters(recurse=False)}
        # A tied weight has one copy, in the module that comes first. The list keeps torch from registering that module twice.
        self._tied_to: dict[str, list[FullLayer]] = {}
        for name, weight in base_layer.named_parameters(recurse=False):
            if id(weight) in owners:
                self._tied_to[name] = [owners[id(weight)]]
            else:
                owners[id(weight)] = self
                setattr(self, f"{_PREFIX}{name}", nn.ParameterDict())
        self.adapter_layer_names = tuple(f"{_PREFIX}{name}" for name in self.owned_names)
        self.update_layer(adapter_name, config)

    @property
    def owned_names(self) -> list[str]:
        """The names of the module's weights that have their copy here."""
        return [name for name in self._saved_dtypes if name not in self._tied_to]

    def update_layer(self, adapter_name: str, config: FullConfig) -> None:
        """Add a copy that equals the base's weights: in float32 for training, in the base's precision for inference."""
        for name in self.owned_names:
            weight = self.base_layer.get_parameter(name)
            dtype = weight.dtype if config.inference_mode else torch.float32
            copies = getattr(self, f"{_PREFIX}{name}")
            copies[adapter_name] = nn.Parameter(weight.detach().to(dtype, copy=True))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def active_copy(self, name: str) -> torch.Tensor | None:
        """Return the active trained copy of a weight, as it is saved, in the base's present precision; None without one."""
        owner = self._tied_to[name][0] if name in self._tied_to else self
        own_name = name if owner is self else owner.name_of(self.base_layer.get_parameter(name))
        copies = getattr(owner, f"{_PREFIX}{own_name}")
        for adapter_name in self.active_adapters:
            if adapter_name in copies:
                saved = copies[adapter_name].to(self._saved_dtypes[name])
                return saved.to(self.base_layer.get_parameter(name).dtype)
        return None

    def saved_copies(self, adapter_name: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield an adapter's copies by their names in this module, in the precision in which they are saved."""
        for name in self.owned_names:
            copies = getattr(self, f"{_PREFIX}{name}")
            yield f"{_PREFIX}{name}.{adapter_name}", copies[adapter_name].detach().to(self._saved_dtypes[name])

    def name_of(self, weight: nn.Parameter) -> str:
        return next(name for name, own in self.base_layer.named_parameters(recurse=False) if own is weight)

    def active_weights(self) -> dict[str, torch.Tensor]:
        """Return the weights with which the module computes instead of the base's; none while disabled or merged."""
        if self.disable_adapters or self.merged:
            return {}
        weights = {name: self.active_copy(name) for name in self._saved_dtypes}
        return {name: weight for name, weight in weights.items() if weight is not None}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output with the trained weights."""
        weights = self.active_weights()
        if not weights:
            return self.base_layer(*args, **kwargs)
        return functional_call(self.base_layer, weights, args, kwargs, tie_weights=False)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Replace the base's weights by the trained ones. A tied weight is replaced by the module that holds its copy."""
        weights = self.active_weights()
        for name in self.owned_names:
            if name in weights:
                weight = self.base_layer.get_parameter(name)
                self._replaced[name] = weight.data
                weight.data = weights[name].detach()
        self.merged_adapters.extend(self.active_adapters)

    def unmerge(self) -> None:
        """Put the base's weights back, to the last bit."""
        for name, data in self._replaced.items():
            self.base_layer.get_parameter(name).data = data
        self._replaced.clear()
        self.merged_adapters.clear()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)

    @property
    def weight(self) -> torch.Tensor:
        """The weight with which the module computes: fused heads and generation read it."""
        return self.active_weights().get("weight", self.base_layer.weight)  # type: ignore[return-value, arg-type]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias with which the module computes."""
        return self.active_weights().get("bias", self.base_layer.bias)  # type: ignore[return-value, arg-type]


class FullHead(nn.Module):
    """The output head around its trained layer. TRL's trainers read its ``weight``, which is the trained one.

    They refuse a layer of PEFT in its place, because the weight of such a layer is the base's.
    """

    def __init__(self, layer: FullLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the logits (batch, seq, vocab)."""
        return self.layer(*args, **kwargs)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the base's head, with the trained weights if ``merge``. PEFT calls this."""
        if merge:
            self.layer.merge(safe_merge, adapter_names)
        return self.layer.get_base_layer()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)


class FullModel(BaseTuner):
    """The tuner that gives the modules of the config trained weights."""

    prefix = _PREFIX
    tuner_layer_cls = FullLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: FullConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        known = target.layer if isinstance(target, FullHead) else target
        if isinstance(known, FullLayer):
            known.update_layer(adapter_name, peft_config)
            return
        owners = self.__dict__.setdefault("_owners", {})
        layer = FullLayer(target, adapter_name, peft_config, owners)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        is_head = getattr(self.model, "get_output_embeddings", lambda: None)() is target
        self._replace_module(parent, target_name, FullHead(layer) if is_head else layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module without reading its ``weight``. A trained module that contains others keeps them inside."""
        owner = parent.get_base_layer() if isinstance(parent, FullLayer) else parent
        setattr(owner, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Leave the copies as they are: PEFT would load them in float32, twice the memory of the base."""

    def _check_tied_modules(self, model: nn.Module, peft_config: FullConfig) -> None:
        """Accept tied weights: ``FullLayer`` keeps one copy of each."""

    def _check_merge_allowed(self) -> None:
        """Accept tied weights: a merge replaces them once, so that they stay tied."""


peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = FullConfig
peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = FullModel
peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = FullModel.prefix
