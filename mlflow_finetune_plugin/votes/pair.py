"""The two versions that a report on votes compares."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, TrackingError, in_short, unknown
from mlflow_finetune_plugin.store.names import BASE, CHALLENGER, CHAMPION
from mlflow_finetune_plugin.store.registered_model import version_exists

if TYPE_CHECKING:
    from mlflow import MlflowClient

_VERSION = re.compile(r"[1-9][0-9]*")


@dataclass(frozen=True)
class VersionPair:
    """Two versions of a registered model. The base model has the version ``base``."""

    candidate: str
    champion: str


def find_pair(
    client: MlflowClient, model: str, between: tuple[str, str] | None = None
) -> tuple[VersionPair | None, str]:
    """Find the versions to compare.

    Args:
        client: The client of the registry.
        model: A registered model.
        between: Two versions, aliases or ``base``; None: the challenger and the champion, or the base instead of the one
            that is missing or the same version.

    Returns:
        The pair and an empty text; or None and the reason, where ``between`` is None and the model has neither alias.

    Raises:
        ConfigError: The model, a version or an alias does not exist, or ``between`` names one version twice.
        TrackingError: The registry does not answer.
    """
    aliases = _aliases(client, model)
    if between is None:
        versions = list(dict.fromkeys(aliases[alias] for alias in (CHALLENGER, CHAMPION) if alias in aliases))
        if not versions:
            return None, f"{model} has no {CHALLENGER} and no {CHAMPION}, so there is no pair to compare by default."
        candidate, champion = [*versions, BASE][:2]
        return VersionPair(candidate, champion), ""
    candidate, champion = (_version(client, model, name, aliases) for name in between)
    if candidate == champion:
        raise ConfigError(
            [f"{between[0]} and {between[1]} are both {model}/{candidate}; fix: name two different versions"]
        )
    return VersionPair(candidate, champion), ""


def _aliases(client: MlflowClient, model: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(model).aliases
        return {alias: str(version) for alias, version in aliases.items()}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise TrackingError(f"the registry does not answer for {model!r}: {in_short(error)}") from error
        names = [str(registered.name) for registered in client.search_registered_models(max_results=200)]
        raise ConfigError([unknown("registered model", model, names)]) from error


def _version(client: MlflowClient, model: str, name: str, aliases: Mapping[str, str]) -> str:
    """Return the version that ``name`` (a version, an alias or ``base``) stands for."""
    if name in aliases:
        return aliases[name]
    if name == BASE or (_VERSION.fullmatch(name) and version_exists(client, model, name)):
        return name
    raise ConfigError([unknown(f"version or alias of {model}", name, [*aliases, BASE])])
