"""What a champion must keep showing, and the error rates of its checks: the ``watch`` section of ``register``."""

from __future__ import annotations

from pydantic import Field

from mlflow_finetune_plugin.section import Section


class ProofPolicy(Section):
    """The champion against the previous version on rows that neither was trained on."""

    alpha: float = Field(
        0.05, ge=1e-6, lt=0.5, description="Chance, over all sets of rows, of rolling back a champion that is no worse."
    )


class ErrorsPolicy(Section):
    """What share of the answers may fail, by a test that stays valid after every answer."""

    at_most: float = Field(0.01, ge=1e-5, lt=0.5, description="Share of answers that may fail.")
    alpha: float = Field(
        0.05, ge=1e-6, lt=0.5, description="Chance of ever rolling back a champion whose answers fail no more often."
    )
    minimum: int = Field(30, ge=1, le=1_000_000, description="Answers needed to decide.")


class VoteDriftPolicy(Section):
    """Whether the champion loses, or both answers are bad, more often than before it became champion."""

    alpha: float = Field(
        0.05, ge=1e-6, lt=0.5, description="Chance of ever recommending a re-tuning although nothing changed."
    )


class DriftPolicy(Section):
    """How far the champion may fall from its held-out rows to new ones."""

    at_most: float = Field(
        0.05, ge=0, description="Bound on the lower end of the interval of the metric's fall, in the metric's unit."
    )
    nats_at_most: float = Field(
        0.1, ge=0, description="Bound on the lower end of the interval of the rise of the references' nats per token."
    )
    alpha: float = Field(
        0.05,
        ge=1e-6,
        lt=0.5,
        description="Chance, over all sets of rows and both bounds, of recommending a re-tuning although nothing changed.",
    )


class WatchPolicy(Section):
    """What a champion must keep showing. Votes and latency are judged by the gate policy of its training."""

    proof: ProofPolicy = Field(default_factory=ProofPolicy, description="Gain over the previous version.")
    errors: ErrorsPolicy = Field(default_factory=ErrorsPolicy, description="Answers that failed.")
    vote_drift: VoteDriftPolicy = Field(
        default_factory=VoteDriftPolicy, description="Votes since it became champion, against those before."
    )
    drift: DriftPolicy = Field(default_factory=DriftPolicy, description="New rows against its held-out rows.")
