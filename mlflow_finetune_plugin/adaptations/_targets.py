"""Choose the linear layers that an adaptation changes, and check the choice. Reads no weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from posixpath import commonpath

from mlflow_finetune_plugin.base_models.facts import BaseFacts, Part, Reasons, part_of
from mlflow_finetune_plugin.errors import BaseModelError

Targets = str | list[str]
"""``all-linear``, one regular expression, or module name endings."""

# PEFT treats layers of these names as experts or routers of a mixture (peft.utils.transformers_weight_conversion).
_EXPERT_LAYERS = frozenset({"gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})


def without_experts(targets: Targets, base: BaseFacts, reasons: Reasons) -> Targets:
    """Return the targets with ``all-linear`` replaced by names where the experts are stacked in one tensor.

    For such a base PEFT would also adapt experts and router, each expert at a rank that PEFT chooses, and vLLM rejects a
    router's adapter. So only the linear layers are named, and the reason says so.
    """
    if not base.has_stacked_experts or targets != "all-linear":
        return targets
    endings = sorted({name.rsplit(".", 1)[-1] for name in base.linear_shapes} - _EXPERT_LAYERS)
    reasons["options.target_modules"] = (
        f"{', '.join(endings)}: the experts are stacked in one tensor, so they and the router are not adapted"
    )
    return endings


def in_parts(targets: Targets, base: BaseFacts, parts: Sequence[Part], reasons: Reasons) -> Targets:
    """Return the targets within some parts of a base that sees, as one regular expression; unchanged for other bases.

    A layer of the vision tower often has the same name as one of the language model, so names alone would choose both. A regular
    expression in the recipe stays as it is.

    Raises:
        BaseModelError: a part has no linear layer, or the base has no parts.
    """
    if not base.sees:
        if list(parts) != ["language"]:
            raise BaseModelError(f"options.train = {list(parts)}: this base has a language model only; fix: remove it")
        return targets
    if isinstance(targets, str) and targets != "all-linear":
        return targets
    alternatives = []
    for part in parts:
        names = [name for name in base.linear_shapes if part_of(name) == part and base.is_target(name, targets)]
        if not names:
            raise BaseModelError(
                f"options.train: no layer of the part {part} matches; fix: choose from {_endings(base)}"
            )
        folder = commonpath([name.replace(".", "/") for name in names]).replace("/", ".")
        endings = "|".join(sorted({re.escape(name.rsplit(".", 1)[-1]) for name in names}))
        alternatives.append(rf"{re.escape(folder)}\..*({endings})" if len(names) > 1 else re.escape(names[0]))
    reasons["options.target_modules"] = f"the linear layers of: {', '.join(parts)} (options.train)"
    return "|".join(f"({alternative})" for alternative in alternatives)


def target_shapes(targets: Targets, base: BaseFacts) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the layers to adapt. Raises BaseModelError when there is none."""
    chosen = {name: shape for name, shape in base.linear_shapes.items() if base.is_target(name, targets)}
    unmatched = (
        [t for t in targets if not any(base.is_target(name, [t]) for name in base.linear_shapes)]
        if isinstance(targets, list)
        else []
    )
    if unmatched or not chosen:
        requested = ", ".join(unmatched) if unmatched else repr(targets)
        head = (
            f" ({base.head} is the output head, which is never adapted)"
            if base.head is not None and base.is_target(base.head, unmatched or targets)
            else ""
        )
        raise BaseModelError(
            f"options.target_modules: {requested} matches no layer of this base{head}; fix: choose from its layers: {_endings(base)}"
        )
    non_linear = [name for name in base.other_modules if targets != "all-linear" and base.is_target(name, targets)]
    if non_linear:
        raise BaseModelError(
            f"options.target_modules = {targets!r}: also matches {non_linear[0]}, which is not a linear layer"
            f"{', it is the output head' if non_linear[0] == base.head else ''}; fix: match only from: {_endings(base)}"
        )
    experts = sorted({name.rsplit(".", 1)[-1] for name in chosen} & _EXPERT_LAYERS)
    if base.has_stacked_experts and experts:
        raise BaseModelError(
            f"options.target_modules = {targets!r}: {', '.join(experts)} would also adapt the stacked experts; "
            "fix: remove them"
        )
    return chosen


def _endings(base: BaseFacts) -> str:
    return ", ".join(sorted({name.rsplit(".", 1)[-1] for name in base.linear_shapes}))
