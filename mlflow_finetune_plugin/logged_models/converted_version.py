"""Register a converted adapter as a new version, with a proof like a trained one, in the run that made the original."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.base_models.facts import takes_adapters
from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.config.sections import MAX_PRECISION_GAP
from mlflow_finetune_plugin.errors import ConfigError, ReloadError, TrackingError
from mlflow_finetune_plugin.evaluation.results import EvalRow, chat_turns
from mlflow_finetune_plugin.logged_models.adapter import (
    LoggedAdapter,
    Reference,
    check_adapter_moved,
    check_reload,
    log_adapter,
    make_reference,
    probe_log_probs,
)
from mlflow_finetune_plugin.logged_models.conversion import MAX_NATS, LoraExport, export_lora
from mlflow_finetune_plugin.logged_models.loading import LoggedModel, differences, load_logged
from mlflow_finetune_plugin.logged_models.precisions import served_as
from mlflow_finetune_plugin.logged_models.probes import probe_prompts
from mlflow_finetune_plugin.logged_models.reference_answers import Decoding
from mlflow_finetune_plugin.store.names import (
    ADAPTATION_TAG,
    ADAPTER_DIGEST_TAG,
    BASE_DIGEST_TAG,
    BASE_MODEL_TAG,
    CONTENT_DIGEST_TAG,
    CONVERSION_MAX_TAG,
    CONVERSION_MEAN_TAG,
    CONVERSION_RANK_TAG,
    CONVERTED_FROM_TAG,
    DATA_DIGEST_TAG,
    OBJECTIVE_TAG,
    SERVING_TAG,
    START_DIGEST_TAG,
    START_FROM_TAG,
)
from mlflow_finetune_plugin.store.registry import (
    FoundModel,
    RegisteredVersion,
    forget_version,
    is_registered,
    register_adapter,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class ConvertedVersion:
    """``is_new_run``: the run that made the original is gone, so a new run was created for the version."""

    export: LoraExport
    version: RegisteredVersion
    run_id: str
    is_new_run: bool


@dataclass(frozen=True)
class _HomeRun:
    """The run that the converted model belongs to; ``step``: that of the original in it."""

    run_id: str
    experiment_id: str
    step: int
    is_new: bool


def register_converted(
    client: MlflowClient,
    source: FoundModel,
    rank: int,
    *,
    name: str | None = None,
    folder: Path | None = None,
    base_model: str | None = None,
    max_nats: float = MAX_NATS,
    trust_code: bool = False,
) -> ConvertedVersion:
    """Converts, proves and registers, alias challenger on the new version. ``name``: None takes the original's; ``folder`` as of
    ``export_lora``, None keeps no copy; ``trust_code`` as of ``load_logged``.

    Raises ConfigError for what cannot be converted or served, ReloadError when it differs by more than ``max_nats`` or does not
    load back, TrackingError when the registry refuses. Then nothing is left, neither here nor there.
    """
    name = name or _name_of(source.uri)
    with tempfile.TemporaryDirectory() as scratch:
        out = folder if folder is not None else Path(scratch) / "lora"
        export = export_lora(source.uri, out, rank, base_model, max_nats=max_nats, trust_code=trust_code)
        try:
            return _register(client, source, export, name, base_model, max_nats, trust_code, Path(scratch))
        except BaseException:
            shutil.rmtree(out, ignore_errors=True)
            raise


def _register(
    client: MlflowClient,
    source: FoundModel,
    export: LoraExport,
    name: str,
    base_model: str | None,
    max_nats: float,
    trust_code: bool,
    scratch: Path,
) -> ConvertedVersion:
    from mlflow.exceptions import MlflowException

    original = load_logged(source.uri, base_model, trust_code=trust_code)
    adapter = scratch / "adapter"
    adapter.mkdir()
    for file in _ADAPTER_FILES:
        shutil.copyfile(export.folder / file, adapter / file)
    reference, rows = _reference(original, adapter, max_nats)
    record = _record(source.uri, original.card, export)
    card = _card(original.card, record, adapter)
    tags = _tags(card)
    try:
        home = _home_run(client, source)
        with _undo_on_failure(client, home, name, card["adapter_digest"]), _in_experiment(home.experiment_id):
            logged = log_adapter(
                adapter,
                original.tokenizer,
                run_id=home.run_id,
                name=name,
                base=_base(card["base_model"]),
                card=card,
                reference=reference,
                folder=scratch,
                step=home.step,
                tags=tags,
            )
            del original  # its memory is needed to load the new one
            back = load_logged(logged.uri, base_model, trust_code=trust_code)
            check_reload(back.model, back.tokenizer, reference, rows)
            version = register_adapter(
                client,
                logged.uri,
                name,
                tags=tags | {CONTENT_DIGEST_TAG: logged.content_digest},
                description=_description(record),
            )
    except MlflowException as error:
        raise TrackingError(f"{source.uri} as LoRA cannot be logged: {' '.join(str(error).split())[:400]}") from error
    _note(client, home, logged, version, record)
    return ConvertedVersion(export, version, home.run_id, home.is_new)


def _name_of(uri: str) -> str:
    name, _, version = uri.removeprefix("models:/").rpartition("/")
    if not name or not version:
        raise ConfigError([f"--register: {uri} belongs to no registered model; fix: --register NAME"])
    return name


def _reference(original: LoggedModel, adapter: Path, max_nats: float) -> tuple[Reference, list[EvalRow]]:
    """What the converted adapter says of the same probes, on the base as it will be loaded, and the probes.

    The base's side is the base's still. Raises ReloadError beyond ``max_nats``: on a quantised base it is asked here first.
    """
    recorded = original.reference
    rows = [
        EvalRow(chat_turns(p), prompt, tuple(p["completion_ids"]), "", "", "", 0)
        for p, prompt in zip(recorded["probes"], probe_prompts(recorded, original.pictures), strict=True)
    ]
    model = PeftModel.from_pretrained(original.model.unload(), adapter).eval()
    family = str(model.config.model_type)
    if not takes_adapters(family):
        raise ConfigError(
            [f"vLLM takes no adapters on {family}, LoRA either; fix: serve it with --engine transformers"]
        )
    largest = float(differences(model, original).max())
    if not largest <= max_nats:
        raise ReloadError(
            f"as LoRA on its {recorded['precision']} base it differs from the adapter by {largest:.2g} nats on a token "
            f"(allowed {max_nats:g}); fix: a higher --rank, or a higher --max-nats"
        )
    adapted = probe_log_probs(model, original.tokenizer, rows)
    precisions = recorded.get("served_as") or {str(recorded["precision"]): {"max_gap": MAX_PRECISION_GAP}}
    pad = int(original.tokenizer.pad_token_id or 0)
    card = original.card
    decoding = Decoding(original.tokenizer, card["stop_token_ids"], card["answer_prefix"], int(card["max_new_tokens"]))
    reference = make_reference(
        original.tokenizer,
        rows,
        precision=str(recorded["precision"]),
        base=[torch.tensor(probe["base_log_probs"]).numpy() for probe in recorded["probes"]],
        adapter=adapted,
        served_as={
            precision: served_as(
                model,
                rows,
                precision,
                trained=adapted,
                pad_token_id=pad,
                max_gap=float(before["max_gap"]),
                decoding=decoding,
            )
            for precision, before in precisions.items()
        },
    )
    check_adapter_moved(reference)
    return reference, rows


def _record(uri: str, card: dict[str, Any], export: LoraExport) -> dict[str, Any]:
    """Where it came from, and what that cost."""
    origin = {key: card.get(key) for key in ("adaptation", "options", "serving", "adapter_digest")}
    return {"model": uri, **origin, **export.to_dict()}


def _card(card: dict[str, Any], record: dict[str, Any], adapter: Path) -> dict[str, Any]:
    changes = {"adaptation": "lora", "options": {}, "serving": "vllm", "adapter_digest": folder_digest(adapter)}
    return {**card, "mlflow_finetune": __version__, **changes, "converted_from": record}


def _tags(card: dict[str, Any]) -> dict[str, str]:
    """Return the tags of ``stages.records.identity.Identity``, and those of the conversion."""
    tags = {
        ADAPTATION_TAG: "adaptation",
        OBJECTIVE_TAG: "objective",
        DATA_DIGEST_TAG: "data_digest",
        ADAPTER_DIGEST_TAG: "adapter_digest",
        SERVING_TAG: "serving",
    }
    record, start = card["converted_from"], card.get("start_from")
    return {
        **{tag: str(card[key]) for tag, key in tags.items() if key in card},
        **({START_FROM_TAG: start["model"], START_DIGEST_TAG: start["digest"]} if start else {}),
        BASE_MODEL_TAG: str(card["base_model"]["name"]),
        BASE_DIGEST_TAG: str(card["base_model"]["digest"]),
        CONVERTED_FROM_TAG: record["model"],
        CONVERSION_RANK_TAG: str(record["rank"]),
        CONVERSION_MAX_TAG: f"{record['max_nats']:.3g}",
        CONVERSION_MEAN_TAG: f"{record['mean_nats']:.3g}",
    }


def _description(record: dict[str, Any]) -> str:
    return (
        f"LoRA of rank {record['rank']}, converted from {record['model']} ({record['adaptation']})\n\n"
        f"- {record['kept']:.1%} of the updates of {record['layers']} layers\n"
        f"- log-probabilities within {record['max_nats']:.2g} nats of the original's on {record['tokens']} tokens "
        f"({record['mean_nats']:.2g} in the mean)"
        + (
            f"\n- not in it: {', '.join(record['lost'])}; these alone move a token by up to {record['lost_max_nats']:.2g} nats"
            if record["lost"]
            else ""
        )
    )


def _base(card: dict[str, Any]) -> BaseModel:
    return BaseModel(
        name=card["name"],
        folder=Path(card["folder"]),
        revision=card["revision"],
        dtype=getattr(torch, card["dtype"]),
        quantization=card["quantization"],
        trust_remote_code=card["trust_remote_code"],
    )


def _home_run(client: MlflowClient, source_model: FoundModel) -> _HomeRun:
    """The run that made the original; a new one beside it where that is gone."""
    from mlflow.exceptions import MlflowException

    experiment_id = "0"
    if source_model.model_id is not None:
        source = client.get_logged_model(source_model.model_id)
        experiment_id = str(source.experiment_id)
        try:
            run = client.get_run(str(source.source_run_id))
            experiment_id = str(run.info.experiment_id)
            if run.info.lifecycle_stage == "active":
                outputs = run.outputs.model_outputs if run.outputs is not None else []
                step = next((output.step for output in outputs if output.model_id == source_model.model_id), 0)
                return _HomeRun(run.info.run_id, experiment_id, step, is_new=False)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    run = client.create_run(experiment_id, run_name=f"LoRA of {source_model.uri}")
    return _HomeRun(run.info.run_id, experiment_id, 0, is_new=True)


@contextmanager
def _in_experiment(experiment_id: str) -> Iterator[None]:
    """Set the experiment of this process: MLflow logs a model there, not into the experiment of the given run."""
    names = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiment_id
    try:
        yield
    finally:
        del os.environ["MLFLOW_EXPERIMENT_ID"]
        os.environ.update(before)


@contextmanager
def _undo_on_failure(client: MlflowClient, home: _HomeRun, name: str, digest: str) -> Iterator[None]:
    """Takes back what a failure inside left at the tracking server, as far as that can be reached."""
    from mlflow.exceptions import MlflowException

    before, was_registered = _models(client, home, digest), is_registered(client, name)
    try:
        yield
    except BaseException:
        try:
            for model_id in _models(client, home, digest) - before:
                forget_version(client, f"models:/{model_id}", name)
                client.delete_logged_model(model_id)
            if not was_registered and is_registered(client, name):
                client.delete_registered_model(name)
            if home.is_new:
                client.delete_run(home.run_id)
        except MlflowException as error:
            logger.warning("what was logged in run %s could not be taken back: %s", home.run_id, error)
        raise
    if home.is_new:
        client.set_terminated(home.run_id)


def _models(client: MlflowClient, home: _HomeRun, digest: str) -> set[str]:
    """Those of the run with this adapter: also one whose logging broke off."""
    condition = f"source_run_id = '{home.run_id}' AND tags.`{ADAPTER_DIGEST_TAG}` = '{digest}'"
    return {model.model_id for model in client.search_logged_models([home.experiment_id], filter_string=condition)}


def _note(
    client: MlflowClient, home: _HomeRun, logged: LoggedAdapter, version: RegisteredVersion, record: dict[str, Any]
) -> None:
    """``conversion.json`` and metrics. The version is whole without them: its card says the same."""
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    names = ("max_nats", "mean_nats", "kept", "rank")
    now = int(time.time() * 1000)
    metrics = [
        Metric(f"conversion/{key}", float(record[key]), now, home.step, model_id=logged.model_id, run_id=home.run_id)
        for key in names
    ]
    file = f"conversions/{version.name}-{version.version}/conversion.json"
    try:
        client.log_batch(home.run_id, metrics=metrics)
        client.log_text(home.run_id, json.dumps(record, indent=1, ensure_ascii=False), file)
    except (MlflowException, OSError) as error:
        logger.warning("%s is registered, but its run does not say how it was converted: %s", version.uri, error)
