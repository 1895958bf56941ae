"""PEFT's methods that are not offered, each with its reason.

"In a trial" means 25 steps on a Llama of five layers with peft 0.21.2, where LoRA starts at a loss of 1.57.
"""

from __future__ import annotations

from collections.abc import Mapping

_VIRTUAL = "PEFT puts its virtual tokens before the padding of a batch and drops the positions, so that answers depend on the other rows"
_UNTESTED = "it learned in a trial, but has not passed this package's tests"

REFUSED: Mapping[str, str] = {
    "adalora": "it must reassign ranks between the backward pass and the optimizer's step, which the trainer does not do; fix: use lora",
    "adamss": f"{_UNTESTED}; fix: use lora",
    "adaption_prompt": "its attention fails with transformers 5.19 (ZeroDivisionError); fix: use lora",
    "beft": "it trains biases, and Llama, Mistral and Qwen3 have none; merging fails there; fix: use ln_tuning",
    "boft": "oft solved more in PEFT's comparison (49.1 % of GSM8K instead of 34.3 %) with fewer weights; fix: use oft",
    "cartridge": "it starts far from the base (loss 6.5 in a trial), and a training must start as the base; fix: use lora",
    "cpt": "it needs the tokens of a prompt of examples in its config, and learned nothing in a trial; fix: use lora",
    "deft": f"{_UNTESTED}; fix: use lora",
    "frod": f"{_UNTESTED}; fix: use vera",
    "glora": f"{_UNTESTED}; fix: use lora",
    "lily": "it can be neither merged nor converted to LoRA, so vLLM could never serve it; fix: use lora",
    "multitask_prompt_tuning": "it needs a task number with every row, which no engine sends; fix: use lora",
    "osf": "it trains all weights in a subspace, for continual learning, and is as large as the base; fix: use lora",
    "p_tuning": f"{_VIRTUAL}; fix: use ptuning",
    "peanut": f"{_UNTESTED}; fix: use lora",
    "poly": "it needs a task number with every row, which no engine sends; fix: use lora",
    "prefix_tuning": f"{_VIRTUAL}; fix: use prefix",
    "prompt_tuning": f"{_VIRTUAL}; fix: use prompt",
    "psoft": f"{_UNTESTED}; fix: use oft",
    "shadow": "it starts away from the base (loss 2.2 in a trial), and cannot be merged; fix: use lora",
    "supertuning": f"{_UNTESTED}; fix: use shira",
    "tinylora": "answers of padded and unpadded prompts differed in a trial; fix: use vera",
    "trainable_tokens": "it trains the embeddings of tokens that a recipe would have to list, and no layer; fix: use lora",
    "unilora": "it hardly learned in a trial (loss 1.57 to 1.52); fix: use vera",
    "vblora": "its bank of vectors is large: eight times LoRA's weights in a trial; fix: use vera",
    "waveft": f"{_UNTESTED}; fix: use fourierft",
    "xlora": "it mixes LoRA adapters that exist already, and trains none; fix: use lora",
}
"""The reason of each method, by PEFT's name in lower case."""
