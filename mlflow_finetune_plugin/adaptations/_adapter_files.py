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
    model.save_pretrained(folder, safe_serialization=True, **arguments)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # PEFT holds module names in sets, whose order differs between processes; sorted, equal runs have equal digests.
    ordered = {
        key: sorted(value) if key in _NAMES and isinstance(value, list) else value for key, value in config.items()
    }
    path.write_text(json.dumps(ordered, indent=2, sort_keys=True), encoding="utf-8")
