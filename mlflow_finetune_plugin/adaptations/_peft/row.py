"""The row of a PEFT method: what the generic code must know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mlflow_finetune_plugin.adaptations._peft.sizes import SizeRule
from mlflow_finetune_plugin.methods import Quantization, Serving, TrainedDtype

HasEffect = Callable[[Mapping[str, Any]], bool]
"""Takes the saved tensors by name; returns whether they change any answer."""


@dataclass(frozen=True)
class MethodOption:
    """An option of a method that a recipe may set.

    Attributes:
        name: The key in the recipe.
        peft_name: The field of PEFT's config.
        value_type: The annotation of the field, without ``auto``.
        default: The value where a recipe sets none. With a ``rule`` this is the largest value that ``auto`` takes.
        description: One sentence for the reference.
        rule: How the sizes of the layers limit the value; None: they do not. Only an option with a rule may be ``auto``.
        times_rank: The value of ``auto`` over the rank; None: it does not follow the rank.
        multiple_of: The value must be a multiple of this number.
        divides: The name of another option that the value must divide.
    """

    name: str
    peft_name: str
    value_type: Any
    default: Any
    description: str
    rule: SizeRule | None = None
    times_rank: int | None = None
    multiple_of: int = 1
    divides: str | None = None

    @property
    def may_be_auto(self) -> bool:
        return self.rule is not None or self.times_rank is not None


@dataclass(frozen=True)
class Rate:
    """A learning rate for ``auto`` and where it comes from."""

    value: float
    reason: str


@dataclass(frozen=True)
class PeftMethod:
    """One method of PEFT that is offered as an adaptation.

    Attributes:
        name: The name in a recipe, ``-P adaptation=NAME``.
        title: The name in its paper.
        summary: What the method does, in one clause.
        paper: The paper with its arXiv number, or its conference.
        config: The class of PEFT's config.
        options: What a recipe may set beside ``target_modules``.
        trains: What is trained, for the reference.
        rate: The learning rate for bases of hidden size 512 and more.
        small_rate: The learning rate for smaller bases.
        has_effect: Whether saved tensors change any answer.
        serving: How the adapter can be served.
        conversion: What a conversion to plain LoRA keeps, or why there is none.
        targets: Which modules are changed: ``linear`` layers, or ``norms``.
        fixed: Further fields of PEFT's config, with the value that this package sets.
        quantizations: The quantisations of a base on which the method trains.
        dtypes: The precisions of a base on which the method trains.
        takes_transposed: Whether layers that are stored as (in, out), as in GPT-2, can be adapted.
        without_weights: Changes PEFT's config where the model is on torch's meta device; None: nothing has to change.
    """

    name: str
    title: str
    summary: str
    paper: str
    config: str
    options: tuple[MethodOption, ...]
    trains: str
    rate: Rate
    small_rate: Rate
    has_effect: HasEffect
    serving: Serving
    conversion: str
    targets: Literal["linear", "norms"] = "linear"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    quantizations: tuple[Quantization, ...] = ()
    dtypes: tuple[TrainedDtype, ...] = ("float32", "bfloat16", "float16")
    takes_transposed: bool = False
    without_weights: Callable[[Any], None] | None = None


def differs_from(**start: float) -> HasEffect:
    """Return a test whether any of the named parameters has left its start value. Other tensors are frozen or random."""

    def has_effect(weights: Mapping[str, Any]) -> bool:
        return any(
            bool((tensor != start[part]).any())
            for name, tensor in weights.items()
            for part in name.split(".")
            if part in start
        )

    return has_effect


def reflections_differ(weights: Mapping[str, Any]) -> bool:
    """Return whether two neighbouring reflections of HRA differ. Equal ones cancel: a reflection is its own inverse."""
    return any(
        bool((tensor[:, 0::2] != tensor[:, 1::2]).any()) for name, tensor in weights.items() if name.endswith("hra_u")
    )


def any_weight(weights: Mapping[str, Any]) -> bool:
    """Return True for any weight that is not zero, where the start is the base's own weight and not part of the adapter."""
    return any(bool(tensor.any()) for tensor in weights.values())


def take_first_weights(config: Any) -> None:
    """Let SHiRA train the first weights of each layer instead of random ones, which PEFT cannot draw without memory for them."""

    def mask(layer: Any, r: int, **_: Any) -> Any:
        import torch

        out, in_ = layer.out_features, layer.in_features
        chosen = torch.arange(out * in_, device="cpu") < r * (out + in_)
        return chosen.reshape(out, in_)

    config.mask_fn = mask
