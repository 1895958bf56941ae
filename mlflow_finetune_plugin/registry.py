"""The registry's side of a proven adapter: a version, its alias and its tags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER = "challenger"


@dataclass(frozen=True)
class RegisteredVersion:
    """A model version."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"


def register_adapter(
    client: MlflowClient, model_uri: str, name: str, *, tags: Mapping[str, str], description: str
) -> RegisteredVersion:
    """A new version of ``name`` under the alias challenger; the alias moves only when the version is whole.

    Asked again for the same model, it finishes the version that is there. Raises TrackingError when the registry refuses.
    """
    from mlflow import register_model
    from mlflow.exceptions import MlflowException

    try:
        version = _version_of(client, model_uri, name) or register_model(model_uri, name)
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
        client.update_model_version(name, version.version, description=description)
        client.set_registered_model_alias(name, CHALLENGER, version.version)
    except MlflowException as error:
        raise TrackingError(f"the registry refused {name!r}: {' '.join(str(error).split())[:400]}") from error
    return RegisteredVersion(name, str(version.version))


def _version_of(client: MlflowClient, model_uri: str, name: str) -> ModelVersion | None:
    """A version that an earlier try, cut off by an outage, left behind."""
    return next((v for v in client.search_model_versions(f"name = '{name}'") if v.source == model_uri), None)
