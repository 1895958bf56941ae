"""The recipe section ``base_model``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflow_finetune_plugin.section import Section


class BaseModelSettings(Section):
    """The model to start from."""

    name: str = Field(
        "embedded",
        min_length=1,
        description="Hub name, local folder, or a packaged tiny model: `embedded`, or `embedded_vision`, which reads pictures.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the base weights; auto: bfloat16 on a GPU that has it, else float32."
    )
    quantization: Literal["nf4", "int8"] | None = Field(None, description="Quantise the base with bitsandbytes.")
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3"] = Field(
        "auto",
        description="Attention kernel, by its name in transformers; auto: flash attention where it is installed and the GPU takes it, eager for soft capping, else sdpa.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
