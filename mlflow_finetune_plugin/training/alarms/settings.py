"""The thresholds of a training's alarms, as a recipe sets them. Needs no torch."""

from __future__ import annotations

from pydantic import Field

from mlflow_finetune_plugin.section import Section


class AlarmSettings(Section):
    """The thresholds of the alarms. ``null`` switches one off."""

    reward_gap: float | None = Field(
        0.5, gt=0, description="Rise of the reward that is missing on validation prompts, in standard deviations."
    )
    length_ratio: float | None = Field(
        2.0, gt=1, description="Mean length of completions, divided by that at the start."
    )
    kl: float | None = Field(1.0, gt=0, description="KL divergence from the start, in nats per token.")
    entropy_ratio: float | None = Field(
        0.2, gt=0, lt=1, description="Entropy, divided by that at the start; a lower limit."
    )
    flat_groups: float | None = Field(
        0.9, gt=0, le=1, description="Share of groups whose completions all have one reward."
    )
    repeated_text: float | None = Field(
        0.3, gt=0, le=1, description="Share of three-word sequences that occurred before in their completion."
    )
    chosen_fall: float | None = Field(
        0.25, gt=0, description="Fall of the better answers' log-probability, as a share of that at the start."
    )
