"""Which GPUs a process started here would see, told without torch, whose import takes seconds."""

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
    """Each as ``CUDA_VISIBLE_DEVICES`` names it, in CUDA's order: by nvidia-smi, and that variable where it is set.

    None without nvidia-smi, which comes with every driver. Raises FinetuneError when nvidia-smi fails.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    return chosen_gpus(os.environ.get(VISIBLE), _LISTED.findall(_listing()))


def chosen_gpus(visible: str | None, uuids: list[str]) -> list[str]:
    """What CUDA makes of ``CUDA_VISIBLE_DEVICES``: entries up to the first that names none of the devices ``uuids``."""
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
    """``nvidia-smi -L``: a line a GPU, indented lines for its MIG instances."""
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
