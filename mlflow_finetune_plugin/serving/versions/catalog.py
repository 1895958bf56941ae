"""What the registry says at this moment about the models that are served."""

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
    """``aliases``: alias -> version number."""

    aliases: Mapping[str, str]
    traffic: Traffic


Snapshot = Mapping[str, CatalogModel]


class Catalog:
    """The registered models named, through any MLflow registry."""

    def __init__(self, client: MlflowClient, models: tuple[str, ...]) -> None:
        self._client, self.models = client, models

    def read(self) -> Snapshot:
        """Asks the registry; blocks. Raises TrackingError when it cannot be asked, ConfigError for a model it does not have."""
        return {name: self._model(name) for name in self.models}

    def read_each(self) -> tuple[dict[str, CatalogModel], dict[str, str]]:
        """What the registry says of each model, and the faults of those that it says nothing of, or does not have; blocks.

        One that it does not have any more was taken out of service: it has no alias.
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
            raise TrackingError(f"the registry cannot be asked for {name!r}: {in_short(error)}") from error
        except Exception as error:  # what a store raises when its database or network is gone
            raise TrackingError(f"the registry cannot be asked for {name!r}: {in_short(error)}") from error
        aliases = {alias: str(version) for alias, version in dict(registered.aliases).items()}
        return CatalogModel(aliases, read_traffic(dict(registered.tags), aliases))

    def _nearest(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            names = [model.name for model in self._client.search_registered_models(max_results=200)]
        except MlflowException:  # it has just said that there is no such model: what else there is, it need not tell
            return "; fix: the name of a registered model"
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            return f"; did you mean {near[0]!r}?"
        return (
            f"; it has: {', '.join(names[:8])}"
            if names
            else "; fix: register one, mlflow run PROJECT -b finetune -e lora"
        )
