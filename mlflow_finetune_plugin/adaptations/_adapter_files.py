"""Write an adapter's two files in PEFT's format, byte for byte equal for equal runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftModel

_NAMES = ("target_modules", "feedforward_modules")


def write_adapter(model: PeftModel, folder: Path, **arguments: Any) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` to ``folder``.

    Args:
        model: the trained model.
        folder: receives the two files.
        arguments: passed to PEFT's ``save_pretrained``.
    """
    head = _score_weights(model)  # before PEFT takes the model apart
    model.save_pretrained(folder, safe_serialization=True, **arguments)
    _add(head, folder / "adapter_model.safetensors")
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT holds module names in sets, whose order differs between processes; sorted, equal runs have equal digests.
    ordered = {
        key: sorted(value) if key in _NAMES and isinstance(value, list) else value for key, value in config.items()
    }
    path.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")


def _score_weights(model: PeftModel) -> dict[str, Any]:
    """Return the trained score head under PEFT's names; nothing of a model without one."""
    # Imported here, because submitting a run loads the adaptations and must not wait for torch.
    from mlflow_finetune_plugin.internals.transformers import score_head

    head = score_head(model.get_base_model())
    trained = getattr(head, "modules_to_save", None)
    if trained is None:
        return {}
    weights = trained[model.active_adapter].state_dict()
    return {f"base_model.model.score.{name}": value.detach().to("cpu", copy=True) for name, value in weights.items()}


def _add(tensors: dict[str, Any], path: Path) -> None:
    """Add what a file lacks: PEFT leaves the score head out where it converts PiSSA or OLoRA to plain LoRA."""
    if not tensors:
        return
    from safetensors.torch import load_file, save_file

    saved = load_file(path)
    if not tensors.keys() <= saved.keys():
        save_file({**tensors, **saved}, path, metadata={"format": "pt"})
