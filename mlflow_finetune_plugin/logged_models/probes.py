"""The held-out rows on which base and adapter are recorded, and the prompts that a record gives again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.images.model_inputs import PictureInputs
from mlflow_finetune_plugin.images.prompts import PicturePrompt
from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.images.turns import pictures_of

PROBES = 16
LARGEST_PICTURES = 2 * 2**20
"""Bytes of a probe's pictures. They travel within ``reference.json``, which an engine reads for the certificate."""


def probe_rows(rows: Sequence[EvalRow]) -> list[EvalRow]:
    """Return the first held-out rows, of those whose pictures are small enough to travel with the model.

    Raises:
        DataError: no row has such pictures.
    """
    chosen: list[EvalRow] = []
    for row in rows:
        if sum(len(content) for content in _contents(row)) <= LARGEST_PICTURES:
            chosen.append(row)
        if len(chosen) == PROBES:
            break
    if rows and not chosen:
        raise DataError(
            f"every held-out row has more than {LARGEST_PICTURES:,} bytes of pictures, so none can travel with the model for the "
            "check of a served version; fix: hold out some rows with smaller files (data.eval)"
        )
    return chosen


def probe_pictures(rows: Sequence[EvalRow]) -> dict[str, str]:
    """Return the pictures of probes as ``reference.json`` holds them: base64 text by name."""
    return {
        name: PicturesInMemory.encoded(row.prompt_ids.store.get(name))
        for row in rows
        if isinstance(row.prompt_ids, PicturePrompt)
        for name in row.prompt_ids.names
    }


def probe_prompts(reference: Mapping[str, Any], inputs: PictureInputs | None) -> list[tuple[int, ...]]:
    """Return the prompts of a record, with their pictures.

    Args:
        reference: The content of ``reference.json``.
        inputs: The processor of a base that sees; None of another.
    """
    store = PicturesInMemory(reference.get("pictures") or {})
    prompts: list[tuple[int, ...]] = []
    for probe in reference["probes"]:
        names, ids = pictures_of(probe.get("messages") or ()), tuple(probe["prompt_ids"])
        prompts.append(PicturePrompt(ids, names, inputs, store) if names and inputs is not None else ids)
    return prompts


def _contents(row: EvalRow) -> list[bytes]:
    prompt = row.prompt_ids
    return [prompt.store.get(name).content for name in prompt.names] if isinstance(prompt, PicturePrompt) else []
