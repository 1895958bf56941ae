"""The ``register`` section of a recipe: the model's name, its serving precisions, and what a version must show to be
promoted.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlflow_finetune_plugin.config.sections import MAX_PRECISION_GAP
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.watch_policy import WatchPolicy
from mlflow_finetune_plugin.section import Section


class RegisterSettings(Section):
    """Where the proven adapter is registered."""

    name: str = Field(
        min_length=1,
        max_length=200,
        description="Registered model; a new version that is better than its base gets the alias challenger.",
    )
    first_champion: Literal["auto", "manual"] = Field(
        "auto",
        description="auto: while no version is champion, the run judges its version by the gate, and a pass makes it champion; "
        "manual: only `promote` does.",
    )
    precisions: list[Literal["float32", "bfloat16", "float16"]] = Field(
        default_factory=list,
        description="Further precisions in which the version may be served (serve --dtype), beside the base's.",
    )
    max_precision_gap: float = Field(
        MAX_PRECISION_GAP,
        gt=0,
        description="Largest accepted difference between the adapter in a serving precision and as it was trained, in nats on a token.",
    )
    gate: GatePolicy | None = Field(
        None,
        description="What a version must show before `promote` moves an alias to it; default: a gain, and votes where there are any.",
    )
    watch: WatchPolicy | None = Field(
        None,
        description="What `watch` requires of the champion; it may be changed at any time. Default: the defaults of its keys.",
    )
