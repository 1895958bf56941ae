"""Find the GPUs that a process would see, without torch, whose import takes seconds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

from mlflow_finetune_plugin.errors import FinetuneError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_LISTED = re.compile(r"^\s*(?:GPU|MIG) .*\(UUID: ([\w-]+)\)", re.MULTILINE)
_TIMEOUT_S = 60


def visible_gpus() -> list[str]:
    """Return the GPUs in CUDA's order as ``CUDA_VISIBLE_DEVICES`` names them: nvidia-smi's, limited by that variable.

    The list is empty without nvidia-smi, which comes with every driver.

    Raises:
        FinetuneError: nvidia-smi fails.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    return chosen_gpus(os.environ.get(VISIBLE), _LISTED.findall(_listing()))


def chosen_gpus(visible: str | None, uuids: list[str]) -> list[str]:
    """Apply CUDA's rule for ``CUDA_VISIBLE_DEVICES``: entries count up to the first that is not one of the devices
    ``uuids``.
    """
    cards = [uuid for uuid in uuids if not uuid.startswith("MIG")]
    if visible is None:
        return [str(number) for number in range(len(cards))]
    chosen: list[str] = []
    for name in map(str.strip, visible.split(",")):
        is_card = name.isdigit() and int(name) < len(cards)
        is_uuid = name.startswith(("GPU-", "MIG-")) and any(uuid.startswith(name) for uuid in uuids)
        if not (is_card or is_uuid) or name in chosen:
            break
        chosen.append(name)
    return chosen


def _listing() -> str:
    """Return the output of ``nvidia-smi -L``: a line per GPU, indented lines for its MIG instances."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FinetuneError(f"nvidia-smi -L: {error}; fix: the GPU driver") from error
    if answer.returncode == 0:
        return answer.stdout
    text = " ".join((answer.stdout + answer.stderr).split())[:200]
    if "No devices were found" in text:
        return ""
    raise FinetuneError(
        f"nvidia-smi -L failed: {text}; fix: the GPU driver, or CUDA_VISIBLE_DEVICES= to train on the CPU"
    )
