"""Bottleneck adapters as a method of PEFT 0.21: config, layer and tuner, registered in PEFT's mappings on import.

An adapter follows a module (an attention, a feed-forward or a layer) and adds ``up(activation(down(x)))`` to its output
``x``. This file is copied into every logged model that needs it, so it imports nothing of mlflow-finetune:

    import _bottleneck_tuner
    model = PeftModel.from_pretrained(base, folder)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import peft.mapping
import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.activations import ACT2FN

PEFT_TYPE = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """The modules that get an adapter, and the adapter's shape."""

    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "Module names or endings."}
    )
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    hidden_size: int = field(default=0, metadata={"help": "Width of the modules' output."})
    bottleneck_size: int = field(default=0, metadata={"help": "Width between the two projections."})
    activation: str = field(default="relu", metadata={"help": "A name of transformers.activations.ACT2FN."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained whole."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.target_modules = set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules
        if min(self.hidden_size, self.bottleneck_size) < 1:
            raise ValueError(
                f"hidden_size {self.hidden_size}, bottleneck_size {self.bottleneck_size}: both must be above 0"
            )


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A module of the base followed by adapters. Every other attribute is the module's."""

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.activations: dict[str, nn.Module] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter that changes nothing yet: its up-projection is zero."""
        self.activations[adapter_name] = ACT2FN[config.activation]
        self.bottleneck_down[adapter_name] = nn.Linear(config.hidden_size, config.bottleneck_size)
        self.bottleneck_up[adapter_name] = nn.Linear(config.bottleneck_size, config.hidden_size)
        nn.init.zeros_(self.bottleneck_up[adapter_name].weight)
        nn.init.zeros_(self.bottleneck_up[adapter_name].bias)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output plus that of the adapters: (batch, seq, hidden), or a tuple that starts with it."""
        output = self.base_layer(*args, **kwargs)
        if self.disable_adapters:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        for name in self.active_adapters:
            if name in self.bottleneck_down:
                hidden = hidden + self._share(name, hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _share(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        down, up = self.bottleneck_down[name], self.bottleneck_up[name]
        inner = self.activations[name](down(hidden.to(down.weight.dtype)))  # (batch, seq, bottleneck)
        return up(inner).to(hidden.dtype)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class BottleneckModel(BaseTuner):
    """The tuner that adds adapters to the modules that the config names."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, BottleneckLayer):
            target.update_layer(adapter_name, peft_config)
            return
        layer = BottleneckLayer(target, adapter_name, peft_config)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module without reading its ``weight``, which PEFT's own version does and an attention lacks."""
        setattr(parent, child_name, new_module)
        device = next(child.parameters()).device
        if isinstance(new_module, BottleneckLayer) and device.type != "meta":
            new_module.bottleneck_down.to(device)
            new_module.bottleneck_up.to(device)

    @property
    def merge_and_unload(self) -> Any:
        """Raise AttributeError, so that ``hasattr`` reports that these adapters cannot be merged."""
        raise AttributeError("merge_and_unload")

    def _check_merge_allowed(self) -> None:
        raise ValueError("a bottleneck adapter has an activation inside and cannot be merged into the base's weights")


peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = BottleneckConfig
peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = BottleneckModel
peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = BottleneckModel.prefix
