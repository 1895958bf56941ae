"""The version that a training starts from: its checked files, and its weights in the adapter that is trained.

The files are copied from the registry and checked as serving checks them. No code of the version is run: what PEFT needs to
know of an adaptation comes from the adaptation that is installed here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

from mlflow_finetune_plugin.errors import ConfigError, ReloadError, ServingError, one_line
from mlflow_finetune_plugin.logged_models.loading import check_content_of
from mlflow_finetune_plugin.serving.versions.adapter_config import CONFIG_FILE
from mlflow_finetune_plugin.serving.versions.card import check_card
from mlflow_finetune_plugin.serving.versions.content_digest import ADAPTER_FOLDER, TOKENIZER_FOLDER, check_files
from mlflow_finetune_plugin.serving.versions.version_files import fetch_files
from mlflow_finetune_plugin.store.start_model import KEY, find_start_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

START_FOLDER = "start_version"
"""The folder, within that of a job, with the files of the start version."""

_CHANGING = frozenset(
    (
        *("base_model_name_or_path", "revision", "peft_version", "auto_mapping", "inference_mode"),
        *("init_lora_weights", "init_ia3_weights", "lora_dropout", "encoder_hidden_size"),
    )
)
"""Fields of ``adapter_config.json`` that a training may have otherwise than the version that it continues."""


@dataclass(frozen=True)
class StartVersion:
    """A registered or logged version whose adapter a training continues.

    Attributes:
        uri: ``models:/NAME/VERSION``, ``models:/m-ID`` for one that is not registered, or a folder.
        model_id: The logged model; None where that is not known.
        folder: The checked copy of its artifacts.
        digest: SHA-256 of the adapter's files.
        card: The content of its ``finetune.json``.
        adapter_config: The content of its ``adapter_config.json``.
    """

    uri: str
    model_id: str | None
    folder: Path
    digest: str
    card: dict[str, Any]
    adapter_config: dict[str, Any]

    @property
    def version(self) -> str | None:
        """The version's number; None for a model that is not registered."""
        number = self.uri.rpartition("/")[2]
        return number if self.uri.startswith("models:/") and number.isdigit() else None

    @property
    def adapter(self) -> Path:
        """The folder with PEFT's two files."""
        return self.folder / ADAPTER_FOLDER

    @property
    def tokenizer(self) -> Path:
        return self.folder / TOKENIZER_FOLDER


def fetch_start(client: MlflowClient, reference: str, folder: Path) -> StartVersion:
    """Resolve a reference, and copy and check the version's files.

    Args:
        client: The client of the registry.
        reference: As of ``store.start_model.find_start_model``.
        folder: Receives the copy; what is there is replaced.

    Raises:
        ConfigError: There is no such version.
        ReloadError: Its files are not as they were registered, or are no adapter of mlflow-finetune.
        TrackingError: Registry or artifacts cannot be reached.
    """
    found = find_start_model(client, reference)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    is_folder = found.uri == reference and Path(reference).is_absolute()
    source = Path(reference) / "artifacts" if is_folder else fetch_files(found.uri, folder / "download", found.uri)
    try:
        check_files(source, found.uri)  # no link and no device is copied
        copy = Path(shutil.copytree(source, folder / "artifacts"))
        card = check_content_of(copy, found.uri)
        check_card(card, found.uri)
    except ServingError as error:
        raise ReloadError(f"{KEY} = {found.uri}: {error}") from error
    shutil.rmtree(folder / "download", ignore_errors=True)
    config = json.loads((copy / ADAPTER_FOLDER / CONFIG_FILE).read_text(encoding="utf-8"))
    return StartVersion(found.uri, found.model_id, copy, str(card["adapter_digest"]), card, config)


def load_start(model: PeftModel, folder: Path) -> None:
    """Give an adapter that was just applied the weights of a saved one. The model then answers as that version does.

    Args:
        model: The wrapped base.
        folder: Holds PEFT's two files.

    Raises:
        ConfigError: The saved adapter has other layers or shapes.
    """
    try:
        weights = load_peft_weights(str(folder), device="cpu")
        result = set_peft_model_state_dict(model, {name: tensor.to(model.device) for name, tensor in weights.items()})
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError([f"{KEY}: the version's adapter does not fit: {one_line(error)}; fix: {_FIX}"]) from error
    unsaved = getattr(model.base_model, "training_only", None)  # what computes the saved weights while they are trained
    trained = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and not (unsaved and f".{unsaved}." in name)
    }
    wrong = sorted(trained.intersection(result.missing_keys)) + sorted(result.unexpected_keys)
    if wrong:
        raise ConfigError(
            [f"{KEY}: the version's adapter has other layers than this training's, such as {wrong[0]}; fix: {_FIX}"]
        )


_FIX = "leave out the options that the version decides"


def check_fits(model: PeftModel, start: StartVersion) -> None:
    """Check that an adapter that was just applied has the layers, shapes and scales of the start version's.

    Args:
        model: The wrapped base; on torch's meta device while the plan is made.
        start: The version.

    Raises:
        ConfigError: It differs. The message names a layer or a field.
    """
    load_start(model, start.adapter)
    trained = json.loads(json.dumps(model.peft_config["default"].to_dict(), default=sorted))
    for key, saved in start.adapter_config.items():
        if key in _CHANGING or key not in trained or "modules" in key:  # load_start has compared the modules
            continue
        if trained[key] != saved:
            raise ConfigError(
                [
                    f"{KEY} = {start.uri}: its {CONFIG_FILE} has {key} = {saved!r:.80}, this training {trained[key]!r:.80}; "
                    "fix: start from a version that mlflow-finetune trained"
                ]
            )
