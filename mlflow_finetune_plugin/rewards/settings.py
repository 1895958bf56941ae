"""The recipe's ``rewards``: one entry for each part of the reward."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mlflow_finetune_plugin.section import Section

KINDS = ("python", "grader", "scorer", "model", "judge")

_PART_NAME = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"


class ChatEndpoint(Section):
    """An OpenAI-compatible endpoint."""

    base_url: Annotated[
        str, Field(pattern=r"^https?://\S+$", description="URL without `/chat/completions`; it often ends in `/v1`")
    ]
    api_key_env: Annotated[str | None, Field(pattern=rf"^{_VARIABLE}$")] = Field(
        default=None, description="environment variable with the API key; a key itself never belongs in a recipe"
    )
    tries: Annotated[
        int, Field(ge=1, le=20, description="attempts per request; 429, 5xx and lost connections are tried again")
    ] = 4
    concurrency: Annotated[int, Field(ge=1, le=256, description="requests that run at the same time")] = 8


class JudgePrompt(ChatEndpoint):
    """A language model that rates each completion."""

    model: Annotated[str, Field(min_length=1, description="model to ask")]
    prompt: Annotated[
        str,
        Field(
            min_length=1,
            description="what to ask; `{{prompt}}`, `{{completion}}`, `{{reference}}`, `{{item.COLUMN}}` and "
            "`{{sample.output_text}}` are replaced",
        ),
    ]
    range: Annotated[
        list[float] | None,
        Field(min_length=2, max_length=2, description="lowest and highest rating; another number is a failure"),
    ] = None
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Annotated[int, Field(ge=1, description="longest reply, with room for models that reason first")] = 1024

    @field_validator("prompt")
    @classmethod
    def _has_valid_fields(cls, prompt: str) -> str:
        from mlflow_finetune_plugin.rewards.templates import JUDGE_ROOTS, parse_template

        parse_template(prompt, JUDGE_ROOTS)
        return prompt

    @field_validator("range")
    @classmethod
    def _is_ascending(cls, bounds: list[float] | None) -> list[float] | None:
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError(f"is {bounds}; fix: give the lowest and then the highest rating")
        return bounds


class RewardSettings(Section):
    """One part of a reward: a Python function, a grader, an MLflow scorer, a reward model or a judge.

    A text stands for ``python``: ``reward.py:score`` is ``{python: reward.py:score}``.
    """

    python: str | None = Field(
        default=None,
        min_length=1,
        description="`FILE[:FUNCTION]`, relative to the recipe; without FUNCTION the file's only function",
    )
    completions: Literal["text", "messages"] = Field(
        default="text",
        description="what a Python function gets as prompts and completions: texts, or lists of messages as in TRL",
    )
    grader: dict[str, Any] | None = Field(default=None, description="a grader in OpenAI's JSON form")
    endpoint: ChatEndpoint | None = Field(default=None, description="where a `score_model` grader finds its model")
    scorer: str | None = Field(
        default=None,
        min_length=1,
        description="an MLflow scorer: `mlflow.genai.scorers.NAME`, or `FILE:NAME` for one of a file",
    )
    args: dict[str, Any] = Field(default={}, description="arguments of the scorer's class")
    model: str | None = Field(
        default=None,
        min_length=1,
        description="a registered model that returns one number per row: `models:/NAME@ALIAS` or `models:/NAME/VERSION`",
    )
    judge: JudgePrompt | None = Field(default=None, description="a language model that rates each completion")

    weight: float = Field(default=1.0, description="factor of this part in the total; negative for a penalty")
    name: str | None = Field(
        default=None, description="name in metrics and messages; default: that of the function, grader, scorer or model"
    )
    timeout_s: Annotated[float, Field(gt=0, le=86_400, description="longest time of one call, in seconds")] = 30.0
    on_error: Literal["fail", "skip"] = Field(
        default="fail",
        description="`fail`: a failure ends the run and names the row; `skip`: the value is left out and counted",
    )
    env: list[Annotated[str, Field(pattern=rf"^{_VARIABLE}$")]] = Field(
        default=[], description="environment variables with secrets that the process of this part may see"
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        """Read a text as ``python``, and keys beside ``scorer`` that are not settings as its arguments."""
        if isinstance(value, str):
            return {"python": value}
        if not isinstance(value, dict) or "scorer" not in value or not isinstance(value.get("args", {}), dict):
            return value
        arguments = {key: item for key, item in value.items() if key not in cls.model_fields}
        kept = {key: item for key, item in value.items() if key in cls.model_fields}
        return {**kept, "args": {**arguments, **value.get("args", {})}} if arguments else value

    @field_validator("grader")
    @classmethod
    def _is_grader(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        from mlflow_finetune_plugin.rewards.graders.schema import grader_faults

        faults = grader_faults(value) if value is not None else []
        if faults:
            raise ValueError("; ".join(faults))
        return value

    @field_validator("name")
    @classmethod
    def _is_metric_name(cls, name: str | None) -> str | None:
        if name is not None and not _PART_NAME.fullmatch(name):
            raise ValueError(f"is {name[:100]!r}; fix: use letters, digits, '_', '.' and '-'")
        return name

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        kinds = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(kinds) != 1:
            given = f"both {' and '.join(kinds)}" if kinds else "none of them"
            raise ValueError(f"needs exactly one of {', '.join(KINDS)}, and has {given}; fix: one entry for each part")
        for key, kind in (("args", "scorer"), ("endpoint", "grader")):
            if getattr(self, key) and kinds != [kind]:
                raise ValueError(f"{key} belongs to {kind}, not to {kinds[0]}; fix: remove it")
        if self.completions == "messages" and kinds != ["python"]:
            raise ValueError(f"completions belongs to python, not to {kinds[0]}; fix: remove it")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Allow a text, too."""
        return {"anyOf": [{"type": "string"}, handler(schema)]}

    @property
    def kind(self) -> str:
        """Which of ``KINDS`` this part is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)
