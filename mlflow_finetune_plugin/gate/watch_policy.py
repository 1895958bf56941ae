"""What a champion must go on showing, and the errors that its watch may make: the ``watch`` section of ``register``."""

from __future__ import annotations

from pydantic import Field

from mlflow_finetune_plugin.section import Section


class ProofPolicy(Section):
    """The champion against the previous version on rows that neither was trained on."""

    alpha: float = Field(
        0.05, ge=1e-6, lt=0.5, description="Chance, over all sets of rows, of rolling back a champion that is no worse."
    )


class ErrorsPolicy(Section):
    """How many of the answers may fail, by a test that may be looked at after every answer."""

    at_most: float = Field(0.01, ge=1e-5, lt=0.5, description="Share of answers that may fail.")
    alpha: float = Field(0.05, ge=1e-6, lt=0.5, description="Chance of ever rolling back where no more fail.")
    minimum: int = Field(30, ge=1, le=1_000_000, description="Answers needed to decide.")


class VoteDriftPolicy(Section):
    """Whether the champion loses, or both answers are bad, more often than before it became champion."""

    alpha: float = Field(0.05, ge=1e-6, lt=0.5, description="Chance of ever asking for a tuning where nothing changed.")


class DriftPolicy(Section):
    """How far the champion may fall from its held-out rows to new ones."""

    at_most: float = Field(
        0.05, ge=0, description="Bound on the lower end of the fall of the metric, in the metric's unit."
    )
    nats_at_most: float = Field(
        0.1, ge=0, description="Bound on the lower end of the rise of the references' nats per token."
    )
    alpha: float = Field(
        0.05,
        ge=1e-6,
        lt=0.5,
        description="Chance, over all sets of rows, of asking for a tuning that nothing asks for.",
    )


class WatchPolicy(Section):
    """What is asked of a champion. What of votes and latency: its own gate policy says it."""

    proof: ProofPolicy = Field(default_factory=ProofPolicy, description="Gain over the previous version.")
    errors: ErrorsPolicy = Field(default_factory=ErrorsPolicy, description="Answers that failed.")
    vote_drift: VoteDriftPolicy = Field(
        default_factory=VoteDriftPolicy, description="Votes since it became champion, against those before."
    )
    drift: DriftPolicy = Field(default_factory=DriftPolicy, description="New rows against its held-out rows.")
