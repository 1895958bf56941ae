"""Find the logged model that a training starts from: a version, a run's model, or a folder."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import ConfigError, TrackingError, one_line
from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG
from mlflow_finetune_plugin.store.registry import FoundModel, find_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "start_from"
_RUNS = "runs:/"
_ANY_NAME = "model"


def find_start_model(client: MlflowClient, reference: str) -> FoundModel:
    """Resolve the reference of a start version.

    Args:
        client: The client of the registry.
        reference: What ``store.registry.find_model`` takes, ``runs:/RUN_ID`` or ``runs:/RUN_ID/NAME`` for the adapter that a
            run logged, or the absolute path of a logged model's folder.

    Raises:
        ConfigError: There is no such version, run or folder.
        TrackingError: The registry does not answer.
    """
    if reference.startswith(_RUNS):
        return _of_run(client, reference)
    if not os.path.isabs(reference):
        return find_model(client, reference, key=KEY)
    if not os.path.isfile(os.path.join(reference, "MLmodel")):
        raise _refusal(
            reference, "is not the folder of a logged model: it has no MLmodel", "name the folder with MLmodel"
        )
    return FoundModel(reference, None)


def is_fixed(reference: str) -> bool:
    """Return whether a reference always means the same model: a version number, a logged model's id, or a folder."""
    name, _, number = reference.removeprefix("models:/").rpartition("/")
    is_number = bool(name) and number.isdigit()
    return os.path.isabs(reference) or is_number or reference.startswith("models:/m-")


def _of_run(client: MlflowClient, reference: str) -> FoundModel:
    """Return the adapter of a run: the logged model with the digest that the run recorded. Checkpoints have other ones."""
    from mlflow.exceptions import MlflowException

    run_id, _, name = reference.removeprefix(_RUNS).partition("/")
    try:
        run = client.get_run(run_id)
        outputs = run.outputs.model_outputs if run.outputs is not None else []
        models = [client.get_logged_model(output.model_id) for output in outputs]
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise _refusal(
                reference, "no such run on this tracking server", "give the id of one of its runs"
            ) from error
        raise TrackingError(f"the tracking server does not answer for {reference}: {one_line(error)}") from error
    digest = run.data.tags.get(ADAPTER_DIGEST_TAG)
    own = [model for model in models if digest is not None and model.tags.get(ADAPTER_DIGEST_TAG) == digest]
    if not own:
        raise _refusal(reference, "the run has logged no adapter", "name a run that has finished, or a version")
    named = [model for model in own if name in ("", _ANY_NAME, model.name)]
    if not named:
        raise _refusal(reference, f"the run's adapter is called {own[0].name}", f"{_RUNS}{run_id}")
    newest = max(named, key=lambda model: model.creation_timestamp)
    return FoundModel(f"models:/{newest.model_id}", newest.model_id)


def _refusal(reference: str, why: str, fix: str) -> ConfigError:
    return ConfigError([f"{KEY} = {reference}: {why}; fix: {fix}"])
