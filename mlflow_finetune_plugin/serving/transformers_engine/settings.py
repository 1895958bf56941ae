"""Read the engine's settings from a JSON file, and its key from the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mlflow_finetune_plugin.base_models.files import check_base_files, context_length
from mlflow_finetune_plugin.errors import BaseModelError, ConfigError

KEY_VARIABLE = "FINETUNE_ENGINE_KEY"


class EngineSettings(BaseModel):
    """The base as in training, and the address to listen on. ``threads`` are those of computations; None chooses them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    served_model_name: str = Field(min_length=1)
    tokenizer: Path
    chat_template: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["nf4", "int8"] | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)
    max_model_len: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    threads: int | None = Field(None, ge=1)


def read_settings(path: Path) -> EngineSettings:
    """Read the settings. Raises ConfigError with every fault of the file."""
    try:
        return EngineSettings.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except ValidationError as error:
        raise ConfigError(
            [f"{path}: {'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}" for fault in error.errors()]
        ) from error


def check_files(settings: EngineSettings) -> None:
    """Check base and tokenizer without importing torch. Raises BaseModelError."""
    for folder in (settings.model, settings.tokenizer):
        if not folder.is_dir():
            raise BaseModelError(f"{folder}: no such folder; fix: give the folders of the base and of its tokenizer")
    positions = context_length(check_base_files(settings.model, trust_remote_code=settings.trust_remote_code))
    if positions is not None and settings.max_model_len > positions:
        raise BaseModelError(
            f"max_model_len = {settings.max_model_len}: {settings.model} has {positions} positions; fix: at most {positions}"
        )


def read_key() -> str:
    """Return the key that every /v1 request must carry. Raises ConfigError if it is not set."""
    key = os.environ.get(KEY_VARIABLE, "")
    if not key:
        raise ConfigError(
            [f"the environment variable {KEY_VARIABLE} is empty; fix: start the engine with a random key"]
        )
    return key
