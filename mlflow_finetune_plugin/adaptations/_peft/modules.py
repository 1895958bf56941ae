"""The rows of the table as modules that satisfy the contract of adaptations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import Field, create_model

from mlflow_finetune_plugin.adaptations import task_type
from mlflow_finetune_plugin.adaptations._adapter_files import write_adapter
from mlflow_finetune_plugin.adaptations._blocks import check_names
from mlflow_finetune_plugin.adaptations._peft.row import MethodOption, PeftMethod
from mlflow_finetune_plugin.adaptations._peft.sizes import Sides, check_value, largest_value
from mlflow_finetune_plugin.adaptations._peft.table import METHODS
from mlflow_finetune_plugin.adaptations._targets import target_shapes, without_experts
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.methods import Serving
from mlflow_finetune_plugin.section import Auto, Section

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SMALL_HIDDEN_SIZE = 512
"""Below this hidden size the learning rates are those at which tiny bases learned."""


def options_section(method: PeftMethod) -> type[Section]:
    """Return the section with the options of a method."""
    fields: dict[str, Any] = {option.name: _field(option) for option in method.options}
    if method.targets == "linear":
        fields["target_modules"] = (
            str | list[str],
            Field(
                "all-linear",
                description="all-linear, module name endings, or one regular expression; the output head is never adapted.",
            ),
        )
    else:
        fields["target_modules"] = (
            list[str] | Auto,
            Field("auto", description="Endings of the norms' names; auto: every norm of the base."),
        )
    name = f"{method.name.title().replace('_', '')}Options"
    return create_model(name, __base__=Section, __doc__=f"Options of {method.title}.", **fields)


def _field(option: MethodOption) -> tuple[Any, Any]:
    if option.may_be_auto:
        return option.value_type | Auto, Field("auto", description=option.description)
    return option.value_type, Field(option.default, description=option.description)


def resolve(method: PeftMethod, options: Any, base: BaseFacts, reasons: Reasons) -> Any:
    """Return the options without ``auto``. Raises BaseModelError for options or a base that the method cannot take."""
    if method.targets == "norms":
        return _with_norms(options, base, reasons)
    if base.has_transposed_layers and not method.takes_transposed:
        raise BaseModelError(
            f"{method.name} on {base.model_type}: PEFT does not support {method.title} for its transposed layers; "
            "fix: use -P adaptation=lora, or another base"
        )
    targets = without_experts(options.target_modules, base, reasons)
    shapes = target_shapes(targets, base)
    layers: dict[str, Sides] = {
        name: (shape[1], shape[0]) if base.has_transposed_layers else (shape[0], shape[1])
        for name, shape in shapes.items()
    }
    update: dict[str, Any] = {"target_modules": targets}
    for option in method.options:
        value = getattr(options, option.name)
        update[option.name] = _auto(option, layers, update, reasons) if value == "auto" else value
    _check(method, update, layers)
    return options.model_copy(update=update)


def _auto(option: MethodOption, layers: Mapping[str, Sides], known: Mapping[str, Any], reasons: Reasons) -> Any:
    if option.times_rank is not None:
        value = option.times_rank * known["rank"]
        reasons[f"options.{option.name}"] = f"{value}: {option.times_rank} times the rank, as PEFT's default"
        return value
    assert option.rule is not None
    value = largest_value(option.rule, layers.values(), option.default)
    if not value:
        raise BaseModelError(
            f"options.{option.name} = auto: no value up to {option.default} fits all layers ({option.rule}); "
            "fix: name layers of fitting sizes in options.target_modules"
        )
    value -= value % option.multiple_of
    reasons[f"options.{option.name}"] = (
        f"{value}: PEFT's default" if value == option.default else f"{value}: the largest that all adapted layers allow"
    )
    return value


def _check(method: PeftMethod, values: Mapping[str, Any], layers: Mapping[str, Sides]) -> None:
    for option in method.options:
        value = values[option.name]
        if option.rule is not None:
            check_value(option.rule, layers, option.name, value)
        if option.multiple_of > 1 and value % option.multiple_of:
            raise BaseModelError(
                f"options.{option.name} = {value}: {method.title} needs a multiple of {option.multiple_of}; "
                f"fix: use {value + 1}"
            )
        if option.divides is not None and values[option.divides] % value:
            fitting = values[option.divides] // value * value or value
            raise BaseModelError(
                f"options.{option.divides} = {values[option.divides]}: must be a multiple of options.{option.name} = {value}; "
                f"fix: use {fitting}"
            )


def _with_norms(options: Any, base: BaseFacts, reasons: Reasons) -> Any:
    """Return the options with the norms named. A norm is known by its name: ``norm`` at its end, or ``ln_``."""
    norms = [name for name in base.other_modules if _is_norm(name)]
    endings = sorted({name.rsplit(".", 1)[-1] for name in norms})
    if options.target_modules == "auto":
        if not endings:
            raise BaseModelError(
                f"no norm is recognised in this {base.model_type}; fix: name them in options.target_modules"
            )
        reasons["options.target_modules"] = f"{', '.join(endings)}: every norm of the base"
        return options.model_copy(update={"target_modules": endings})
    check_names(base, "target_modules", options.target_modules, norms)
    return options


def _is_norm(name: str) -> bool:
    last = name.rsplit(".", 1)[-1].lower()
    return last.endswith(("norm", "layernorm")) or last.startswith("ln_")


def learning_rate(method: PeftMethod, base: BaseFacts) -> tuple[float, str]:
    """Return the ``auto`` learning rate and its reason."""
    rate = method.small_rate if base.hidden_size < SMALL_HIDDEN_SIZE else method.rate
    return rate.value, rate.reason


def serving(method: PeftMethod, options: Any) -> Serving:
    """Return how the trained adapter can be served. It does not depend on the options."""
    return method.serving


def apply(method: PeftMethod, model: PreTrainedModel, options: Any, *, seed: int, folder: Path) -> PeftModel:
    """Wrap the base with a fresh adapter of the method. ``seed`` decides all start values that are not fixed in the table."""
    import peft
    from transformers import set_seed
    from transformers.pytorch_utils import Conv1D

    set_seed(seed)
    config_class = getattr(peft, method.config)
    settings = {option.peft_name: getattr(options, option.name) for option in method.options}
    if "fan_in_fan_out" in {field.name for field in dataclasses.fields(config_class)}:
        settings["fan_in_fan_out"] = any(isinstance(module, Conv1D) for module in model.modules())
    config = config_class(**settings, **method.fixed, target_modules=options.target_modules, task_type=task_type(model))
    if model.device.type == "meta" and method.without_weights is not None:
        method.without_weights(config)
    return peft.get_peft_model(model, config)  # type: ignore[return-value]


def save(model: PeftModel, options: Any, folder: Path, *, start: Path) -> None:
    """Write PEFT's two files."""
    write_adapter(model, folder)


def module_of(method: PeftMethod) -> ModuleType:
    """Return a module with the members of the contract for one row."""
    module = ModuleType(f"{__package__}.{method.name}", f"{method.title}: {method.summary} ({method.paper}), on PEFT.")
    members: dict[str, Any] = {
        "Options": options_section(method),
        "QUANTIZATIONS": method.quantizations,
        "DTYPES": method.dtypes,
        "resolve": partial(resolve, method),
        "learning_rate": partial(learning_rate, method),
        "serving": partial(serving, method),
        "apply": partial(apply, method),
        "save": save,
        "has_effect": method.has_effect,
    }
    vars(module).update(members)
    return module


MODULES: Mapping[str, ModuleType] = {method.name: module_of(method) for method in METHODS}
"""The module of each row, by the name of its method."""
