"""Check an adapter's configuration before PEFT reads it: its patterns, sizes and lists have bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from mlflow_finetune_plugin.base_models.name_patterns import pattern_fault
from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.version_files import read_json

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_MOST_NAMES = 10_000
_SMALLEST_BOUND = 4096
_SCALES = frozenset(("lora_alpha", "alpha_pattern"))


def check_adapter_config(folder: Path, name: str) -> None:
    """Check an adapter's configuration.

    PEFT matches some of its texts as regular expressions, and allocates what its numbers say before it compares them with the
    weights.

    Args:
        folder: The adapter's folder.
        name: The version, for messages.

    Raises:
        ServingError: It could block an engine, or take all of its memory.
    """
    config = read_json(folder / CONFIG_FILE, name)
    fault = _pattern_fault(config) or _size_fault(config, max(_SMALLEST_BOUND, _largest_dimension(folder, name)))
    if fault is not None:
        raise ServingError(
            f"{name}: {CONFIG_FILE}: {fault}; fix: train it with a list of layer names, and register it again"
        )


def adapter_rank(folder: Path, name: str) -> int | None:
    """Return the largest rank of an adapter's updates; None if it has no rank. Raises ServingError for an invalid config."""
    config = read_json(folder / CONFIG_FILE, name)
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise ServingError(f"{name}: its rank_pattern is not an object; fix: register it again")
    ranks = [config.get("r"), *pattern.values()]
    return max((rank for rank in ranks if isinstance(rank, int)), default=None)


def adapter_modules(folder: Path) -> tuple[str, ...]:
    """Return the last part of the names of the layers that an adapter's weights change."""
    with safe_open(folder / WEIGHTS_FILE, "np") as weights:
        layers = {
            re.split(r"\.lora_|\.ia3_|\.bottleneck|\.virtual_|\.tuned_", name)[0] for name in list(weights.keys())
        }
    return tuple(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))


def _pattern_fault(config: dict[str, Any]) -> str | None:
    for key, value in config.items():
        if not any(word in key for word in ("modules", "pattern", "layers", "parameters")):
            continue
        names = list(_texts(value))
        if len(names) > _MOST_NAMES:
            return f"{key} has {len(names):,} names, {_MOST_NAMES:,} are allowed"
        for text in names:
            fault = pattern_fault(text)
            if fault is not None:
                return f"{key} = {text[:80]!r}: {fault}"
    return None


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a value and the keys of its objects. PEFT uses the keys of rank_pattern as expressions."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        yield from (text for text in value if isinstance(text, str))
    elif isinstance(value, dict):
        yield from map(str, value)


def _size_fault(config: dict[str, Any], largest: int) -> str | None:
    for key, value in config.items():
        if key in _SCALES:
            continue
        for number in value.values() if isinstance(value, dict) else (value,):
            if isinstance(number, int | float) and abs(number) > largest:
                return f"{key} = {number}: larger than every dimension of its weights"
    return None


def _largest_dimension(folder: Path, name: str) -> int:
    try:
        with safe_open(folder / WEIGHTS_FILE, "np") as weights:
            shapes = [weights.get_slice(key).get_shape() for key in list(weights.keys())]
    except (SafetensorError, OSError) as error:
        raise ServingError(f"{name}: {WEIGHTS_FILE} is not a valid safetensors file: {error}") from error
    return max((size for shape in shapes for size in shape), default=0)
