"""Read the aliases, tags and versions of a registered model, and translate the registry's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import MoveError, TrackingError, one_line
from mlflow_finetune_plugin.store.people import who_moves

if TYPE_CHECKING:
    from mlflow import MlflowClient


def read_model(client: MlflowClient, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return (aliases, tags), from one read. Raises MoveError if there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise MoveError(f"no registered model {name!r}; fix: the name of one that the registry has") from error
    return {alias: str(version) for alias, version in model.aliases.items()}, dict(model.tags)


def version_exists(client: MlflowClient, name: str, version: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        client.get_model_version(name, version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False
    return True


@contextmanager
def registry_faults(name: str) -> Iterator[None]:
    """Turn the registry's refusals and outages into errors of this package."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise MoveError(
                f"{name}: the server does not let {who_moves()} do this: {one_line(error)}; fix: EDIT on the registered model "
                f"{name!r} and leave to create registered models, for the lease"
            ) from error
        if error.error_code in ("UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
            raise TrackingError(
                f"{name}: the server asks who you are: {one_line(error)}; fix: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN"
            ) from error
        raise TrackingError(
            f"{name}: the registry failed: {one_line(error)}; fix: call again when it answers, which settles what was begun"
        ) from error


def named(version: str | None) -> str:
    return "no version" if version is None else f"version {version}"
