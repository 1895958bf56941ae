"""Parse the names that commands accept for a registered model, one of its versions or one of its aliases."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.store.clients import command_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VERSION = re.compile(r"0*[1-9][0-9]{0,9}")
_ALIAS = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST = 600
_FORMS = "use NAME, NAME/VERSION, NAME@ALIAS, models:/NAME/VERSION or models:/NAME@ALIAS"


@dataclass(frozen=True)
class ModelRef:
    """A registered model with at most one of a version number and an alias."""

    name: str
    version: str | None = None
    alias: str | None = None

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.name}/{self.version}"
        return self.name if self.alias is None else f"{self.name}@{self.alias}"

    @property
    def is_whole_model(self) -> bool:
        return self.version is None and self.alias is None


def parse_model_ref(text: str, *, names: Collection[str] = ()) -> ModelRef:
    """Parse ``my-bot``, ``my-bot/1``, ``my-bot@champion``, ``models:/my-bot/1`` or ``models:/my-bot@champion``.

    Args:
        text: what the user wrote.
        names: registered names that are already known. A text that equals one of them is that model, even if it
            contains ``@``.

    Raises:
        ConfigError: for any other form.
    """
    if text in names:
        return ModelRef(text)
    is_uri = text.startswith("models:/")
    body = text.removeprefix("models:/")
    name, slash, version = body.rpartition("/")
    if slash and _is_name(name) and _VERSION.fullmatch(version):
        return _checked(text, ModelRef(name, version=version.lstrip("0")))
    name, at, alias = body.rpartition("@")
    if at and _is_name(name) and _ALIAS.fullmatch(alias):
        return _checked(text, ModelRef(name, alias=alias))
    if at or is_uri or not _is_name(body):
        raise _invalid(text)
    return _checked(text, ModelRef(body))


def find_model_ref(client: MlflowClient, text: str) -> ModelRef:
    """Parse ``text``, with the registry deciding whether ``a@b`` is a model's name or the alias ``b`` of ``a``.

    Raises:
        ConfigError: for a text that ``parse_model_ref`` refuses.
    """
    ref = parse_model_ref(text)
    if ref.alias is None or text.startswith("models:/"):
        return ref
    is_name = any(model.name == text for model in client.search_registered_models(f"name = {_quoted(text)}"))
    return ModelRef(text) if is_name else ref


def model_name(text: str) -> str:
    """Return the registered model that a name of any form belongs to, for commands that concern a whole model.

    If the registry does not answer, ``a@b`` is read as the alias ``b`` of ``a``.

    Raises:
        ConfigError: for a text that ``parse_model_ref`` refuses.
    """
    ref = parse_model_ref(text)
    if ref.alias is None or text.startswith("models:/"):
        return ref.name
    from mlflow.exceptions import MlflowException

    try:
        return find_model_ref(command_client(), text).name
    except MlflowException:
        return ref.name


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def _is_name(text: str) -> bool:
    """MLflow allows any registered name without a slash or a colon."""
    return bool(text.strip()) and "/" not in text and ":" not in text


def _checked(text: str, ref: ModelRef) -> ModelRef:
    if len(text) > _LONGEST or any(ord(character) < 32 for character in text):
        raise _invalid(text)
    return ref


def _invalid(text: str) -> ConfigError:
    return ConfigError([f"{text[:120]!r} is not a valid model name; fix: {_FORMS}"])
