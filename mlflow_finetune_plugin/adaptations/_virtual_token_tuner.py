"""Virtual tokens as a method of PEFT 0.21: config, layers and tuner, registered in PEFT's mappings on import.

A virtual token is a token id beyond the base's vocabulary: of K virtual tokens on a base with V embeddings, the ids are V to V + K - 1.
Such an id reads a trained row, other ids read the base as it is. So virtual tokens take part in masks, positions, padding and caches
as any token does. This file is copied into every logged model that needs it, so it imports nothing of mlflow-finetune:

    import _virtual_token_tuner
    model = PeftModel.from_pretrained(base, folder)
    ids = [*model.get_input_embeddings().virtual_token_ids, *prompt_ids]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import peft.mapping
import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from torch.nn import functional

PEFT_TYPE = "VIRTUAL_TOKENS"


@dataclass
class VirtualTokensConfig(PeftConfig):
    """How many virtual tokens there are, and which modules have rows for them.

    Without ``key_value_modules`` the input embedding has them (prompt tuning), else these modules (prefix tuning).
    """

    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "The input embedding and the key and value modules."}
    )
    exclude_modules: set[str] | list[str] | str | None = field(default=None, metadata={"help": "Modules left out."})
    embedding_module: str = field(default="", metadata={"help": "Full name of the input embedding."})
    key_value_modules: list[str] | None = field(
        default=None, metadata={"help": "Names or endings of the modules that compute keys and values."}
    )
    num_virtual_tokens: int = field(default=0, metadata={"help": "Virtual tokens in front of every prompt."})
    encoder_hidden_size: int | None = field(
        default=None, metadata={"help": "Width of the network that computes the rows while training; None: no network."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained whole."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PEFT_TYPE
        self.target_modules = set(self.target_modules) if isinstance(self.target_modules, list) else self.target_modules
        if self.num_virtual_tokens < 1 or not self.embedding_module:
            raise ValueError(
                f"num_virtual_tokens {self.num_virtual_tokens}, embedding_module {self.embedding_module!r}: both are needed"
            )


class VirtualPositions:
    """Which of the positions that the model reads now are virtual tokens. The layers of an adapter share it."""

    def __init__(self) -> None:
        self.rows: torch.Tensor | None = None
        self.are_virtual: torch.Tensor | None = None

    def set(self, ids: torch.Tensor, first: int, count: int) -> None:
        """Note the positions of ``ids`` (batch, seq): virtual tokens have the ids ``first`` to ``first + count - 1``."""
        self.are_virtual = ids >= first
        self.rows = (ids - first).clamp(0, count - 1)

    def put(self, rows: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Return ``output`` (batch, seq, width) with the rows (virtual tokens, width) at the virtual tokens."""
        if self.rows is None or self.are_virtual is None:
            return output
        numbers = self.rows.to(output.device).reshape(output.shape[:-1])
        are_virtual = self.are_virtual.to(output.device).reshape(output.shape[:-1])
        return torch.where(are_virtual[..., None], functional.embedding(numbers, rows.to(output.dtype)), output)


class RowEncoder(nn.Module):
    """A network that moves each row: it starts with no move, because its last layer is zero."""

    def __init__(self, width: int, hidden_size: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, hidden_size)
        self.middle = nn.Linear(hidden_size, hidden_size)
        self.last = nn.Linear(hidden_size, width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows (virtual tokens, width), each with its move."""
        hidden = functional.relu(self.middle(functional.relu(self.first(rows))))  # (virtual tokens, encoder)
        return rows + self.last(hidden)


class VirtualLayer(nn.Module, BaseTunerLayer):
    """A module of the base that gives trained rows at virtual tokens. Every other attribute is the module's."""

    adapter_layer_names = ("virtual_rows", "virtual_encoder")

    def __init__(self, base_layer: nn.Module, positions: VirtualPositions) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.virtual_rows = nn.ParameterDict()
        self.virtual_encoder = nn.ModuleDict()
        self.counts: dict[str, int] = {}
        self.positions = positions
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._active_adapter: str | list[str] = []

    def add_rows(self, adapter_name: str, config: VirtualTokensConfig, *, trains: bool) -> None:
        """Add the rows of an adapter, which are zero."""
        self.counts[adapter_name] = config.num_virtual_tokens
        if trains:
            width = _width(self.base_layer)
            rows = torch.zeros(config.num_virtual_tokens, width, device=_device(self.base_layer))
            self.virtual_rows[adapter_name] = nn.Parameter(rows)
            if config.encoder_hidden_size is not None:
                encoder = RowEncoder(width, config.encoder_hidden_size)
                self.virtual_encoder[adapter_name] = encoder.to(rows.device) if rows.device.type != "meta" else encoder
        self._active_adapter = self._active_adapter or [adapter_name]
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def adapter(self) -> str | None:
        """The name of the adapter whose rows are read; None while adapters are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.counts), None)

    def rows(self, adapter: str) -> torch.Tensor | None:
        """Return the rows of an adapter, (virtual tokens, width); None if it has none in this module."""
        if adapter not in self.virtual_rows:
            return None
        rows = self.virtual_rows[adapter]
        return self.virtual_encoder[adapter](rows) if adapter in self.virtual_encoder else rows

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class VirtualEmbedding(VirtualLayer):
    """The input embedding, which alone sees the token ids."""

    @property
    def virtual_token_ids(self) -> range:
        """The ids of the virtual tokens that a prompt starts with; empty while adapters are disabled."""
        first = int(self.base_layer.weight.shape[0])
        return range(first, first + (0 if self.adapter is None else self.counts[self.adapter]))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids (batch, seq): (batch, seq, width)."""
        adapter = self.adapter
        if adapter is None:
            return self.base_layer(ids)
        first, count = int(self.base_layer.weight.shape[0]), self.counts[adapter]
        self.positions.set(ids, first, count)
        embedded = self.base_layer(ids.masked_fill(ids >= first, 0))
        rows = self.rows(adapter)
        if rows is None:  # the rows are keys and values; nothing reads the output at a virtual token
            return embedded.masked_fill((ids >= first)[..., None], 0)
        return self.positions.put(rows, embedded)


class VirtualOutput(VirtualLayer):
    """A module that computes keys or values, and gives trained ones at virtual tokens."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the module's output, (batch, seq, width)."""
        output, adapter = self.base_layer(*args, **kwargs), self.adapter
        rows = None if adapter is None else self.rows(adapter)
        return output if rows is None else self.positions.put(rows, output)


class VirtualTokensModel(BaseTuner):
    """The tuner that adds rows to the modules that the config names."""

    prefix = "virtual_"
    training_only = "virtual_encoder"
    """The part of a parameter's name that says that no file holds it."""
    tuner_layer_cls = VirtualLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _create_and_replace(
        self,
        peft_config: VirtualTokensConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        is_embedding = current_key == peft_config.embedding_module
        layer = target
        if not isinstance(layer, VirtualLayer):
            positions = self.__dict__.setdefault("virtual_positions", VirtualPositions())
            layer = (VirtualEmbedding if is_embedding else VirtualOutput)(target, positions)
        layer.add_rows(adapter_name, peft_config, trains=not (is_embedding and peft_config.key_value_modules))
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Replace a module. Its rows are on the right device already."""
        setattr(parent, child_name, new_module)

    def _check_tied_modules(self, model: nn.Module, peft_config: VirtualTokensConfig) -> None:
        """Do nothing: the weights that input and output embedding share stay as they are."""

    def _get_tied_target_modules(self, model: nn.Module) -> list[str]:
        """Return none: the weights that input and output embedding share stay as they are."""
        return []

    @property
    def merge_and_unload(self) -> Any:
        """Raise AttributeError, so that ``hasattr`` reports that virtual tokens cannot be merged."""
        raise AttributeError("merge_and_unload")

    def _check_merge_allowed(self) -> None:
        raise ValueError("virtual tokens change no weights of the base, so they cannot be merged into it")


def _width(module: nn.Module) -> int:
    """Return the width of a module's output: that of an embedding, a linear layer or a transposed one."""
    for name in ("embedding_dim", "out_features", "nf"):
        if hasattr(module, name):
            return int(getattr(module, name))
    raise ValueError(f"{type(module).__name__}: its output's width is not known; name linear layers")


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[PEFT_TYPE] = VirtualTokensConfig
peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING[PEFT_TYPE] = VirtualTokensModel
peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING[PEFT_TYPE] = VirtualTokensModel.prefix
