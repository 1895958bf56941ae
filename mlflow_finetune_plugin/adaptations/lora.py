"""LoRA: low-rank updates beside frozen weights (Hu et al. 2021, arXiv 2106.09685), on PEFT.

With its relatives that share the structure: rsLoRA (arXiv 2312.03732), DoRA (arXiv 2402.09353), the initialisations
PiSSA (arXiv 2404.02948), OLoRA (arXiv 2406.01775) and orthogonal, and LoRA+'s higher learning rate for B
(arXiv 2402.12354). PiSSA and OLoRA change the base they start from; their result is saved as plain LoRA of twice the
rank, which is exact, so that it loads on the untouched base and vLLM takes it.
"""

from __future__ import annotations

from mlflow_finetune_plugin.adaptations._low_rank import (
    Options,
    acts,
    apply,
    optimizer,
    resolve,
    save,
    serving,
    vllm_max_lora_rank,
    weightless,
)
from mlflow_finetune_plugin.base_models.facts import BaseFacts

__all__ = [
    "Options",
    "acts",
    "apply",
    "learning_rate",
    "optimizer",
    "resolve",
    "save",
    "serving",
    "vllm_max_lora_rank",
    "weightless",
]


def learning_rate(base: BaseFacts) -> tuple[float, str]:
    """The ``auto`` learning rate and its reason.

    Tinker's published fit for LoRA: 5e-5 x 10 x (2000 / hidden size) ** p with p = 0.781 for Llama, 0.0775 for Qwen.
    Below hidden size 512 the fit was never measured; there 2e-3 learnt best on the embedded base without forgetting much
    (benchmarks/results/learning_rate.md).
    """
    if base.model_type.startswith("qwen"):
        power, source = 0.0775, "Tinker's LoRA fit for Qwen"
    elif base.model_type in ("llama", "mistral", "smollm3"):
        power, source = 0.781, "Tinker's LoRA fit for Llama"
    else:
        return (
            (2e-3, "measured on tiny models")
            if base.hidden_size < 512
            else (2e-4, "TRL's LoRA default; no fit published for this family")
        )
    rate = 5e-4 * (2000 / base.hidden_size) ** power
    if base.hidden_size < 512:
        return 2e-3, "measured on tiny models; below hidden size 512 no fit is published"
    return float(f"{rate:.2g}"), source
