"""``ft.export``: a registered adapter as a merged model or as plain LoRA, as files or as a new version."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import ConfigError

DEFAULT_RANK = 32
DEFAULT_MAX_NATS = 0.05


@dataclass(frozen=True)
class ExportedModel:
    """An exported model, compared with the adapter that it was made from.

    ``max_nats`` is the largest difference of a token's log-probability, over ``tokens`` tokens. ``energy`` is the
    share of the adapter's weight updates that plain LoRA of this ``rank`` holds; None for a merged model. ``lost`` are the changed
    weights that LoRA cannot hold, and ``lost_max_nats`` is the largest difference that these alone make.
    """

    source_uri: str
    kind: str
    folder: str | None
    max_nats: float
    tokens: int
    rank: int | None = None
    layers: int | None = None
    energy: float | None = None
    mean_nats: float | None = None
    model_uri: str | None = None
    run_id: str | None = None
    is_new_run: bool = False
    lost: tuple[str, ...] = ()
    lost_max_nats: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def text(self) -> str:
        """Return a sentence for a terminal."""
        difference = (
            f"log-probabilities differ from the adapter's by at most {self.max_nats:.2g} nats over {self.tokens} tokens"
        )
        if self.kind == "merged":
            return f"{self.source_uri} merged into {self.folder}; {difference}"
        location = f" in {self.folder}" if self.folder is not None else ""
        registered = ""
        if self.model_uri is not None:
            run = f"new run {self.run_id}, because its own is gone" if self.is_new_run else f"run {self.run_id}"
            registered = f", registered as {self.model_uri} (alias challenger) in {run}"
        return (
            f"{self.source_uri} as LoRA of rank {self.rank}{location}{registered}: {self.layers} layers, "
            f"{self.energy:.1%} of their updates; {difference} ({self.mean_nats:.2g} on average){self._lost_text()}"
        )

    def _lost_text(self) -> str:
        if self.lost_max_nats is None:
            return ""
        return (
            f"; {len(self.lost)} changed weights are not in it, such as {self.lost[0]}: these alone move a token by up to "
            f"{self.lost_max_nats:.2g} nats"
        )


def export(
    model: str,
    *,
    merged: str | os.PathLike[str] | None = None,
    lora: str | os.PathLike[str] | None = None,
    register: bool | str = False,
    rank: int = DEFAULT_RANK,
    max_nats: float = DEFAULT_MAX_NATS,
    base_model: str | None = None,
    trust_code: bool = False,
) -> ExportedModel:
    """Export a registered adapter and compare the result with it.

    Args:
        model: ``my-bot``, ``my-bot/1``, ``my-bot@champion`` or a ``models:/`` URI.
        merged: new folder for the adapter merged into its base.
        lora: new folder for plain LoRA (made from DoRA or IA3, cut to ``rank``).
        register: True registers the plain LoRA as a new version of the same registered model, a name as one of that
            model.
        rank: rank of the plain LoRA.
        max_nats: largest accepted difference of a token's log-probability for plain LoRA, in nats.
        base_model: folder of the base, when it has moved.
        trust_code: run Python code in the version that this package does not know.

    Raises:
        ConfigError: the combination of arguments or the model's name is not valid.
        ReloadError: the exported model does not give the adapter's answers.
    """
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.store.registry import find_model

    if merged is not None and (register or lora is not None):
        other = "--register" if register else "--lora"
        raise ConfigError([f"{other} cannot be combined with --merged; fix: drop one of them"])
    if merged is None and lora is None and not register:
        raise ConfigError(["nothing to export; fix: --merged DIR, --lora DIR or --register"])
    client = MlflowClient()
    source = find_model(client, model)
    if merged is not None:
        from mlflow_finetune_plugin.logged_models.merging import export_merged

        folder = Path(merged).expanduser()
        result = export_merged(source.uri, folder, base_model, trust_code=trust_code)
        return ExportedModel(source.uri, "merged", str(result.folder), result.max_nats, result.tokens)
    folder_or_none = Path(lora).expanduser() if lora is not None else None
    version_uri, run_id, is_new_run = None, None, False
    if register:
        from mlflow_finetune_plugin.logged_models.converted_version import register_converted

        name = register if isinstance(register, str) else None
        conversion = register_converted(
            client,
            source,
            rank,
            name=name,
            folder=folder_or_none,
            base_model=base_model,
            max_nats=max_nats,
            trust_code=trust_code,
        )
        lora_export = conversion.export
        version_uri, run_id, is_new_run = conversion.version.uri, conversion.run_id, conversion.is_new_run
    else:
        from mlflow_finetune_plugin.logged_models.conversion import export_lora

        assert folder_or_none is not None
        lora_export = export_lora(
            source.uri, folder_or_none, rank, base_model, max_nats=max_nats, trust_code=trust_code
        )
    return ExportedModel(
        source_uri=source.uri,
        kind="lora",
        folder=str(folder_or_none) if folder_or_none is not None else None,
        max_nats=lora_export.max_nats,
        tokens=lora_export.tokens,
        rank=lora_export.rank,
        layers=lora_export.layers,
        energy=lora_export.held_share,
        mean_nats=lora_export.mean_nats,
        model_uri=version_uri,
        run_id=run_id,
        is_new_run=is_new_run,
        lost=lora_export.lost,
        lost_max_nats=lora_export.lost_max_nats,
    )
