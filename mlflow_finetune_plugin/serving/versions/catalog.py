"""Read the served models' aliases and traffic rules from the registry."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, TrackingError, in_short
from mlflow_finetune_plugin.serving.versions.traffic import Traffic, read_traffic

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class CatalogModel:
    """A registered model. ``aliases`` maps each alias to a version number."""

    aliases: Mapping[str, str]
    traffic: Traffic


Snapshot = Mapping[str, CatalogModel]


class Catalog:
    """The registered models with these names, in any MLflow registry."""

    def __init__(self, client: MlflowClient, models: tuple[str, ...]) -> None:
        self._client, self.models = client, models

    def read(self) -> Snapshot:
        """Read all models. It blocks.

        Raises:
            TrackingError: The registry cannot be reached.
            ConfigError: The registry does not have one of the models.
        """
        return {name: self._model(name) for name in self.models}

    def read_each(self) -> tuple[dict[str, CatalogModel], dict[str, str]]:
        """Read each model, and continue when one cannot be read. It blocks.

        Returns:
            The models that could be read, and the faults by model name. A deleted model has a fault and no aliases.
        """
        snapshot: dict[str, CatalogModel] = {}
        faults: dict[str, str] = {}
        for name in self.models:
            try:
                snapshot[name] = self._model(name)
            except TrackingError as error:
                faults[name] = str(error)
            except ConfigError as error:
                faults[name], snapshot[name] = "; ".join(error.problems), CatalogModel({}, Traffic())
        return snapshot, faults

    def _model(self, name: str) -> CatalogModel:
        from mlflow.exceptions import MlflowException

        try:
            registered = self._client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ConfigError([f"{name}: the registry has no such model{self._nearest(name)}"]) from error
            raise TrackingError(f"{name!r} cannot be read from the registry: {in_short(error)}") from error
        except Exception as error:  # stores raise errors of their own when their database or network is gone
            raise TrackingError(f"{name!r} cannot be read from the registry: {in_short(error)}") from error
        aliases = {alias: str(version) for alias, version in dict(registered.aliases).items()}
        return CatalogModel(aliases, read_traffic(dict(registered.tags), aliases))

    def _nearest(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            names = [model.name for model in self._client.search_registered_models(max_results=200)]
        except MlflowException:  # the list is only a help, and the registry may refuse to list
            return "; fix: give the name of a registered model"
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            return f"; did you mean {near[0]!r}?"
        return (
            f"; it has: {', '.join(names[:8])}"
            if names
            else "; fix: train and register one with mlflow run PROJECT -b finetune -e lora"
        )
