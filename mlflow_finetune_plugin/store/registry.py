"""Register a proven adapter: a version with its alias and its tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, TrackingError
from mlflow_finetune_plugin.store.model_ref import ModelRef, find_model_ref
from mlflow_finetune_plugin.store.names import CHALLENGER, CHAMPION, CONTENT_DIGEST_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class RegisteredVersion:
    """A model version."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register_adapter(
    client: MlflowClient,
    model_uri: str,
    name: str,
    *,
    tags: Mapping[str, str],
    description: str,
    is_challenger: bool = True,
) -> RegisteredVersion:
    """Register a new version of ``name``. If it is called again for the same model, it completes the existing version.

    Args:
        client: The client of the registry.
        model_uri: The logged model.
        name: The registered model.
        tags: The version's tags.
        description: The version's description, as Markdown.
        is_challenger: Set the alias challenger to it, when everything else is written.

    Raises:
        TrackingError: The registry refused.
    """
    from mlflow import register_model
    from mlflow.exceptions import MlflowException

    try:
        version = _version_of(client, model_uri, name) or register_model(model_uri, name)
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
        client.update_model_version(name, version.version, description=description)
        if is_challenger:
            client.set_registered_model_alias(name, CHALLENGER, version.version)
    except MlflowException as error:
        raise TrackingError(f"the registry refused {name!r}: {' '.join(str(error).split())[:400]}") from error
    return RegisteredVersion(name, str(version.version))


def is_registered(client: MlflowClient, name: str) -> bool:
    """Return whether the registry has a model of this name, with or without versions."""
    return bool(client.search_registered_models(f"name = '{name}'"))


def forget_version(client: MlflowClient, model_uri: str, name: str) -> None:
    """Delete the version that a failed ``register_adapter`` may have left behind."""
    version = _version_of(client, model_uri, name)
    if version is not None:
        client.delete_model_version(name, version.version)


@dataclass(frozen=True)
class FoundModel:
    """A logged adapter: ``uri`` names a version (or a logged model) that can no longer change."""

    uri: str
    model_id: str | None


def find_model(client: MlflowClient, name: str, *, key: str = "model") -> FoundModel:
    """Resolve the name of a logged adapter.

    Args:
        client: The client of the registry.
        name: ``my-bot/1``, ``my-bot@champion``, a ``models:/`` URI of either or of a logged model (``models:/m-...``), or
            ``my-bot``: its champion, or its challenger while there is no champion, as the router answers that name.
        key: The key that holds the name, for messages.

    Raises:
        ConfigError: The name is not valid, or the registry does not have it.
        TrackingError: The registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    try:
        uri = _uri_of(client, name, key)
        return _find_uri(client, uri, key)
    except MlflowException as error:
        reason = " ".join(str(error).split())[:300]
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise ConfigError([f"{key} = {name}: {reason}; fix: a version that the registry has"]) from error
        raise TrackingError(f"the registry does not answer for {name}: {reason}") from error


def content_digest_of(client: MlflowClient, uri: str) -> str | None:
    """Return the content digest of a version or logged model; None if it was registered before there was one.

    Raises:
        MlflowException: The registry does not have it, or does not answer.
    """
    model = _find_uri(client, uri)
    name, _, number = model.uri.removeprefix("models:/").rpartition("/")
    tags = dict(client.get_model_version(name, number).tags) if name else {}
    if CONTENT_DIGEST_TAG not in tags and model.model_id is not None:
        tags = dict(client.get_logged_model(model.model_id).tags)
    return tags.get(CONTENT_DIGEST_TAG)


def _uri_of(client: MlflowClient, name: str, key: str) -> str:
    if name.startswith("models:/"):
        return name
    try:
        reference = find_model_ref(client, name)
    except ConfigError as error:
        raise ConfigError([f"{key} = {error.problems[0]}"]) from error
    if reference.is_whole_model:
        aliases = client.get_registered_model(reference.name).aliases
        alias = next((alias for alias in (CHAMPION, CHALLENGER) if alias in aliases), None)
        if alias is None:
            raise ConfigError(
                [f"{key} = {name}: has neither a champion nor a challenger; fix: name a version, {name}/NUMBER"]
            )
        reference = ModelRef(reference.name, alias=alias)
    return f"models:/{reference}"


def _find_uri(client: MlflowClient, uri: str, key: str = "model") -> FoundModel:
    from mlflow.exceptions import MlflowException

    from mlflow_finetune_plugin.internals.mlflow import model_uri_parts

    try:
        parsed = model_uri_parts(uri)
    except MlflowException as error:
        raise ConfigError(
            [f"{key} = {uri}: not a model URI; fix: models:/NAME/VERSION, models:/NAME@ALIAS or models:/m-ID"]
        ) from error
    if parsed.model_id is not None:
        return FoundModel(f"models:/{client.get_logged_model(parsed.model_id).model_id}", parsed.model_id)
    if parsed.alias is not None:
        version = client.get_model_version_by_alias(parsed.name, parsed.alias)
    elif parsed.version is not None:
        version = client.get_model_version(parsed.name, str(parsed.version))
    else:
        raise ConfigError([f"{key} = {uri}: names no version; fix: models:/NAME/VERSION or models:/NAME@ALIAS"])
    source = str(version.source)
    model_id = version.model_id or (source.removeprefix("models:/") if source.startswith("models:/m-") else None)
    return FoundModel(f"models:/{version.name}/{version.version}", model_id)


def _version_of(client: MlflowClient, model_uri: str, name: str) -> ModelVersion | None:
    """Return the version that an earlier attempt, interrupted by an outage, left behind."""
    return next((v for v in client.search_model_versions(f"name = '{name}'") if v.source == model_uri), None)
