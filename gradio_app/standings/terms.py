"""The terms by which the gate weighs votes, and what they mean for the next vote."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import GateError, MoveError
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.promotion.evidence.proven_version import read_version
from mlflow_finetune_plugin.store.names import BASE, CHAMPION
from mlflow_finetune_plugin.store.registered_model import registry_faults

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True)
class VoteTerms:
    """The terms by which the gate weighs votes for a candidate. ``note`` says why they are not the candidate's own."""

    policy: VotesPolicy
    note: str = ""
    are_read: bool = True
    """Whether the gate reads the votes at all."""


DEFAULT_TERMS = VoteTerms(VotesPolicy())


def read_terms(client: MlflowClient, model: str, version: str) -> VoteTerms:
    """Return the terms that the version's training run recorded, which never change. Raises TrackingError."""
    try:
        with registry_faults(model):
            written = read_version(client, model, version).policy
    except (GateError, MoveError) as error:
        return VoteTerms(VotesPolicy(), str(error))
    if written is None:
        return DEFAULT_TERMS
    if written.policy.votes is None:
        return VoteTerms(VotesPolicy(), "its policy leaves votes out, so the gate does not read them", are_read=False)
    return VoteTerms(written.policy.votes)


def judged_version(pair: tuple[str | None, str | None], champion: str | None) -> str | None:
    """Return the version of a pair that a promotion would judge by these votes; None where it reads no votes on this pair.

    Args:
        pair: The versions of both sides, ``base`` for the base; None for a side without a router's receipt.
        champion: The champion's version; None where there is none, and versions are compared with the base.
    """
    other = champion or BASE
    versions = [version for version in pair if version is not None and version != other]
    return versions[0] if len(versions) == 1 and versions[0] != BASE and None not in pair else None


def counting_sentence(terms: VoteTerms | None, champion: str | None) -> str:
    """Return whether and how votes on a pair count, without a word about which side is which.

    Args:
        terms: The terms of the version that would be judged; None where a promotion reads no votes on this pair.
        champion: The champion's version, or None.
    """
    if terms is None:
        return (
            f"Votes on this pair are stored. A promotion reads only votes between a version and the {_other(champion)}."
        )
    if not terms.are_read:
        return "Votes on this pair are stored, and do not count for a promotion: the policy leaves votes out."
    votes, count = ("vote", "counts") if terms.policy.per_voter == 1 else (f"{terms.policy.per_voter} votes", "count")
    effect = (
        "it is promoted only if enough votes prefer it" if terms.policy.required else "enough votes against it stop it"
    )
    if champion is None:
        effect = "enough votes against it stop it"
    return f"Your first {votes} on this pair {count} when the version that challenges the {_other(champion)} is judged: {effect}."


def _other(champion: str | None) -> str:
    return BASE if champion is None else CHAMPION
