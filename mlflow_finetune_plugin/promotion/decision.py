"""Decide about a candidate: read versions and policy, collect the evidence, judge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.evidence import Evidence
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.verdict import Verdict, judge
from mlflow_finetune_plugin.promotion.evidence.answers import Sources
from mlflow_finetune_plugin.promotion.evidence.collection import collect
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion, check_comparable, read_version
from mlflow_finetune_plugin.promotion.moves.audit import now
from mlflow_finetune_plugin.promotion.written_policy import WrittenPolicy, policy_now
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse

EXIT_CODES = {"promote": 0, "unchanged": 0, "hold": 3, "reject": 4}


@dataclass(frozen=True)
class PendingDecision:
    """Candidate, champion and policy of a decision that is not made yet.

    ``looks``: how many versions the candidate was chosen from by their scores, itself included.
    """

    name: str
    alias: str
    candidate: ProvenVersion
    champion: ProvenVersion | None
    policy: WrittenPolicy
    trained_policy_digest: str | None
    looks: int

    @property
    def is_policy_changed(self) -> bool:
        """Whether the policy differs from the one that the training recorded.

        Without a record that is the default policy.
        """
        return self.policy.digest != (self.trained_policy_digest or WrittenPolicy(GatePolicy()).digest)


@dataclass(frozen=True)
class Decision(PendingDecision):
    """A decision with its verdict. ``when`` is ISO 8601 in UTC; ``canary`` is None without a canary."""

    verdict: Verdict
    evidence: Evidence = field(repr=False)
    notes: tuple[str, ...]
    when: str
    canary: CanaryCourse | None = None


def prepare_decision(
    client: MlflowClient,
    name: str,
    version: str,
    alias: str,
    *,
    policy: GatePolicy | None = None,
    accept_new_policy: bool = False,
    looks: int = 1,
) -> PendingDecision:
    """Read the versions and the policy that a decision needs.

    Args:
        client: The tracking server and registry.
        name: The registered model.
        version: The candidate.
        alias: The alias to move.
        policy: A policy to apply now, for example a project's; None means the one that the candidate's training
            recorded.
        accept_new_policy: Allow a policy that differs from the recorded one.
        looks: How many versions the candidate was chosen from by their scores on the held-out rows, itself included.

    Raises:
        MoveError: The versions cannot be judged, or not against each other.
        GateError: The policy was changed and not accepted.
    """
    champion_number = read_model(client, name)[0].get(alias)
    candidate = read_version(client, name, version)
    champion = read_version(client, name, champion_number) if champion_number is not None else None
    if champion is not None:
        check_comparable(candidate, champion)
    trained = candidate.policy
    written = policy_now(policy, trained) if policy is not None else trained or WrittenPolicy(GatePolicy())
    if written == trained:  # also one that was recorded under earlier rules, with its digest
        written = trained
    pending = PendingDecision(
        name, alias, candidate, champion, written, trained.digest if trained is not None else None, looks
    )
    if pending.is_policy_changed and not accept_new_policy:
        before = trained or WrittenPolicy(GatePolicy())
        raise GateError(
            f"{name}/{version}: the policy has changed since its training recorded it ({written.digest[:12]}, was "
            f"{before.digest[:12]}): {'; '.join(_changes(before, written))}; fix: restore it, or --accept-new-policy "
            "(-P accept_new_policy=true)"
        )
    return pending


def decide(pending: PendingDecision, sources: Sources, say: Callable[[str], None]) -> Decision:
    """Collect the evidence that the policy asks for, and judge it. Raises the errors of ``collect``."""
    collected = collect(pending.policy.policy, pending.candidate, pending.champion, sources, say, pending.looks)
    verdict = judge(pending.policy.policy, collected.evidence)
    return Decision(**vars(pending), verdict=verdict, evidence=collected.evidence, notes=collected.notes, when=now())


def _changes(before: WrittenPolicy, after: WrittenPolicy) -> list[str]:
    """Return each part that differs, as ``key: before -> after``."""
    old, new = before.policy.model_dump(mode="json"), after.policy.model_dump(mode="json")
    changes = [f"{key}: {old[key]} -> {new[key]}" for key in new if old.get(key) != new[key]]
    if dict(before.files) != dict(after.files):
        changes.append("the rows of a regression file")
    return changes
