"""The base class of recipe sections and the field types that several sections share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict

EMBEDDED = "embedded"
EMBEDDED_VISION = "embedded_vision"
"""The names of the packaged bases; the second one reads pictures."""

Auto = Literal["auto"]

_LONGEST_PATH_BYTES = 4095  # Linux PATH_MAX


def _is_local(path: str) -> str:
    if "://" in path or path.startswith(("runs:/", "models:/")):
        raise ValueError("is a URL, and only files of this machine are read; fix: download it and name the file")
    if "\0" in path or len(path.encode(errors="replace")) > _LONGEST_PATH_BYTES:
        raise ValueError("cannot be a file name; fix: name an existing file")
    return path


def _is_data(path: str) -> str:
    return path if path.startswith(("hf:", "runs:/", "models:/", "votes:")) else _is_local(path)


LocalFile = Annotated[str, AfterValidator(_is_local)]

DataLocation = Annotated[str, AfterValidator(_is_data)]


class Section(BaseModel):
    """Frozen, strict, closed: a key that is not declared is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_AnswerLayout = Literal["auto", "prompt_completion", "messages", "sharegpt", "alpaca", "label", "instances", "text"]
Layout = Literal[_AnswerLayout, "preference", "ranked", "rated", "prompts"]
