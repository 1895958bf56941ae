"""PEFT's internals: what a tuner class of another package overrides."""

from __future__ import annotations

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from mlflow_finetune_plugin.internals.required import check_names

_OF_TUNER = (
    *("_create_and_replace", "_replace_module", "_check_merge_allowed"),
    *("_check_tied_modules", "_get_tied_target_modules"),
)
_OF_LAYER = ("_disable_adapters", "_active_adapter", "set_adapter", "active_adapters")


def check_tuners() -> None:
    """Raise LibraryVersionError if PEFT no longer calls or reads what tuners of this package define."""
    check_names("peft", BaseTuner, _OF_TUNER)
    check_names("peft", BaseTunerLayer, _OF_LAYER)
