"""Find attention and feed-forward in the decoder blocks of a base by the names of its modules. Reads no weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.errors import BaseModelError

_BLOCK = re.compile(r"(.+?\.\d+)\.(.+)")
_KEYS = frozenset(("k_proj", "key", "key_proj", "wk", "k_lin"))
_VALUES = frozenset(("v_proj", "value", "value_proj", "wv", "v_lin"))
_FUSED = frozenset(
    ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack", "qkv", "att_proj", "kv_proj", "kv_b_proj")
)
# Names of the last linear layer of a feed-forward in transformers' decoders.
DOWN_PROJECTIONS = frozenset(
    ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo", "linear_2", "ff_out", "output_linear")
)


@dataclass(frozen=True)
class Block:
    """A decoder block with the full names of its attention and feed-forward modules.

    Where the block itself holds the layers of its feed-forward (OPT), ``feedforward`` is the last of them.
    """

    name: str
    attention: tuple[str, ...]
    feedforward: str

    def inside(self, name: str) -> str:
        """Return a module's name relative to the block, such as ``self_attn.k_proj``."""
        return name.removeprefix(f"{self.name}.")


def decoder_blocks(base: BaseFacts, *, fix: str) -> list[Block]:
    """Return every decoder block in order. Raises BaseModelError with the names that exist and the advice ``fix``."""
    children: dict[str, dict[str, None]] = defaultdict(dict)
    for name in sorted([*base.linear_shapes, *base.other_modules], key=_natural):
        if match := _BLOCK.fullmatch(name):
            children[match[1]][match[2].split(".")[0]] = None
    stacks = {name.rpartition(".")[0] for name, parts in children.items() if _attention(base, name, parts)}
    names = [name for name in children if name.rpartition(".")[0] in stacks]
    if not names:
        raise BaseModelError(f"this {base.model_type} has no decoder block with a known attention; fix: {fix}")
    return [_block(base, name, list(children[name]), fix) for name in names]


def linears_in(base: BaseFacts, module: str) -> list[str]:
    """Return the linear layers of a module, or the module itself where it is linear."""
    return [name for name in base.linear_shapes if name == module or name.startswith(f"{module}.")]


def keys_and_values(base: BaseFacts, block: Block, *, fix: str) -> list[str]:
    """Return the linear layers of a block that compute keys and values, alone or fused with queries.

    Raises:
        BaseModelError: their names are not known. The message has the names that exist and the advice ``fix``.
    """
    layers = [name for module in block.attention for name in linears_in(base, module)]
    keys, values, fused = (
        [name for name in layers if name.rsplit(".", 1)[-1] in kind] for kind in (_KEYS, _VALUES, _FUSED)
    )
    if not fused and not (keys and values):
        layer_list = ", ".join(block.inside(name) for name in layers)
        raise BaseModelError(
            f"keys and values of {block.name} are not recognised among its layers ({layer_list}) in this {base.model_type}; fix: {fix}"
        )
    return [*keys, *values, *fused]


def are_fused(targets: Iterable[str]) -> bool:
    """Return whether one of these layers computes queries, keys and values together."""
    return any(name.rsplit(".", 1)[-1] in _FUSED for name in targets)


def endings(base: BaseFacts, blocks: Iterable[Block], names: Iterable[str]) -> list[str]:
    """Return the shortest names that select these modules in PEFT: their endings inside a block, if those match nothing else."""
    names = list(names)
    short = sorted({block.inside(name) for block in blocks for name in names if name.startswith(f"{block.name}.")})
    matched = {name for name in [*base.linear_shapes, *base.other_modules] if base.is_target(name, short)}
    return short if matched == set(names) else names


def check_names(base: BaseFacts, option: str, names: list[str], choices: Iterable[str]) -> None:
    """Raise BaseModelError, with the choices, for a name that no module of the base ends with."""
    choices = list(choices)
    unmatched = [name for name in names if not any(base.is_target(module, [name]) for module in choices)]
    if unmatched or not names:
        endings = sorted({name.rsplit(".", 1)[-1] for name in choices if not name.rsplit(".", 1)[-1].isdigit()})
        raise BaseModelError(
            f"options.{option}: {', '.join(unmatched) or 'an empty list'} matches no module of this base that this option accepts; "
            f"fix: choose from: {', '.join(endings)}"
        )


def _block(base: BaseFacts, name: str, parts: list[str], fix: str) -> Block:
    attention = _attention(base, name, parts)
    rest = [part for part in parts if part not in attention]
    direct = [part for part in rest if f"{name}.{part}" in base.linear_shapes]
    containers = [part for part in rest if part not in direct and _has_layers(base, f"{name}.{part}")]
    feedforward = containers or [part for part in direct if part in DOWN_PROJECTIONS]
    if not attention or len(feedforward) != 1 or (containers and direct):
        part_list = ", ".join(parts)
        missing = "attention" if not attention else "feed-forward"
        raise BaseModelError(
            f"the {missing} of {name} is not recognised among its parts ({part_list}) in this {base.model_type}; fix: {fix}"
        )
    return Block(name, tuple(f"{name}.{part}" for part in attention), f"{name}.{feedforward[0]}")


def _attention(base: BaseFacts, block: str, parts: Iterable[str]) -> list[str]:
    """Return the parts that are attentions of the decoder's width. A vision tower has another width."""
    return [
        part
        for part in parts
        if ("attn" in part.lower() or "attention" in part.lower())
        and any(base.hidden_size in base.linear_shapes[name] for name in linears_in(base, f"{block}.{part}"))
    ]


def _has_layers(base: BaseFacts, module: str) -> bool:
    return bool(linears_in(base, module)) or f"{module}.experts" in base.other_modules


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
