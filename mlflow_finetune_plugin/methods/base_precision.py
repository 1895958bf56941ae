"""Whether an adaptation trains on a base in a given precision."""

from __future__ import annotations

from mlflow_finetune_plugin.methods.contract import Adaptation


def precision_fault(
    name: str, adaptation: Adaptation, *, quantization: str | None, dtype: str | None
) -> tuple[str, str] | None:
    """Return the key of ``base_model`` with a value on which the adaptation does not train, and a message; None if it trains.

    Args:
        name: The adaptation's name.
        adaptation: The adaptation.
        quantization: The base's quantisation; None for a base that is not quantised.
        dtype: The base's precision; None where it is not known yet.
    """
    if quantization is not None and quantization not in adaptation.QUANTIZATIONS:
        others = " or ".join(adaptation.QUANTIZATIONS)
        return "quantization", (
            f"base_model.quantization = {quantization!r}: {name} does not train on a base in {quantization}; "
            f"fix: {f'use {others}, ' if others else ''}leave it out, or -P adaptation=qlora"
        )
    if dtype is not None and dtype not in adaptation.DTYPES:
        return "dtype", (
            f"base_model.dtype = {dtype}: {name} does not train on a base in {dtype}; "
            f"fix: base_model.dtype: {' or '.join(adaptation.DTYPES)}"
        )
    return None
