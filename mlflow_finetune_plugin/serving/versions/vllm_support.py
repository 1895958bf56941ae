"""Say why vLLM does not load an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.serving.settings import MAX_RANK

_LORA = ("lora", "qlora")
WHY_NOT_PICTURES = (
    "its base reads pictures, which vLLM prepares with torchvision and under other names of the weights than training"
)


def why_not_served_by_vllm(card: Mapping[str, Any]) -> str:
    """Return why vLLM does not load this adapter, by what its training recorded about serving."""
    adaptation, serving = card["adaptation"], card["serving"]
    if serving == "merge" and adaptation not in _LORA:
        return f"vLLM holds no second copy of a base's weights, as {adaptation} has it; mlflow-finetune export --merged writes a base"
    if serving == "merge":
        return f"the rank of its adapter is above vLLM's limit of {MAX_RANK}"
    if serving == "convertible":
        changes = "its options (DoRA)" if adaptation in _LORA else adaptation
        return f"vLLM loads plain LoRA only, and {changes} changes the weights in another way"
    if adaptation in _LORA:
        family = card.get("base_model", {}).get("model_type")
        bases = f"bases of the family {family}" if family else "bases of its family"
        return f"vLLM loads no adapters on {bases}"
    return f"vLLM has no layers for the adaptation {adaptation}"
