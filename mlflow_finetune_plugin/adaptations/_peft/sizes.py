"""How the sizes of the adapted layers limit an option, and the value that ``auto`` takes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

from mlflow_finetune_plugin.errors import BaseModelError

SizeRule = Literal["smaller_side", "inputs", "sparse", "elements", "divides_inputs", "divides_outputs", "divides_sides"]
"""``smaller_side``, ``inputs``, ``elements``: at most the smaller side, the inputs or the number of weights of every layer.
``sparse``: at most so many that value x (in + out) does not exceed the weights of a layer. ``divides_*``: divides the inputs, the
outputs (and is even), or both sides of every layer.
"""

Sides = tuple[int, int]
"""(out, in) of a layer."""


def largest_value(rule: SizeRule, layers: Iterable[Sides], preferred: int) -> int:
    """Return the largest value up to ``preferred`` that the rule allows on every layer; 0 where there is none."""
    layers = list(layers)
    if rule.startswith("divides"):
        return max((value for value in range(1, preferred + 1) if _divides(rule, layers, value)), default=0)
    return min(preferred, *(_limit(rule, sides) for sides in layers))


def check_value(rule: SizeRule, layers: Mapping[str, Sides], option: str, value: int) -> None:
    """Raise BaseModelError, with the layer and a value that fits, if the rule does not allow the value."""
    for name, sides in layers.items():
        if rule.startswith("divides"):
            fits = _divides(rule, [sides], value)
            must = f"must divide {_DIVIDED[rule]} of every layer" + (
                " and be even" if rule == "divides_outputs" else ""
            )
        else:
            fits = value <= _limit(rule, sides)
            must = f"must be at most {_limit(rule, sides)}"
        if not fits:
            best = largest_value(rule, layers.values(), value)
            fix = f"use {best}" if best else "leave that layer out of options.target_modules"
            raise BaseModelError(f"options.{option} = {value}: {must}, and {name} is {sides}; fix: {fix}")


_DIVIDED = {"divides_inputs": "the inputs", "divides_outputs": "the outputs", "divides_sides": "both sides"}


def _divides(rule: str, layers: list[Sides], value: int) -> bool:
    outputs, inputs = math.gcd(*(out for out, _ in layers)), math.gcd(*(in_ for _, in_ in layers))
    if rule == "divides_inputs":
        return inputs % value == 0
    if rule == "divides_outputs":
        return outputs % value == 0 and value % 2 == 0
    return inputs % value == 0 and outputs % value == 0


def _limit(rule: str, sides: Sides) -> int:
    out, in_ = sides
    limits = {"smaller_side": min(sides), "inputs": in_, "elements": out * in_, "sparse": out * in_ // (out + in_)}
    return limits[rule]
