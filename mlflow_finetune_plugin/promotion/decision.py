"""A candidate, the champion, a policy, the evidence and the verdict, and how they come together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.gate.evidence import Evidence
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.verdict import Verdict, judge
from mlflow_finetune_plugin.promotion.answers import Sources
from mlflow_finetune_plugin.promotion.collect import collect
from mlflow_finetune_plugin.promotion.moves.audit import now
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion, check_comparable, read_version
from mlflow_finetune_plugin.promotion.written_policy import WrittenPolicy, policy_now
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse

EXIT_CODES = {"promote": 0, "unchanged": 0, "hold": 3, "reject": 4}


@dataclass(frozen=True)
class PendingDecision:
    """Who stands against whom, by which policy; nothing is measured yet."""

    name: str
    alias: str
    candidate: ProvenVersion
    champion: ProvenVersion | None
    policy: WrittenPolicy
    trained_policy_digest: str | None

    @property
    def is_policy_changed(self) -> bool:
        """A version whose run wrote none was trained under the gain alone."""
        return self.policy.digest != (self.trained_policy_digest or WrittenPolicy(GatePolicy()).digest)


@dataclass(frozen=True)
class Decision(PendingDecision):
    """And what came of it. ``when``: ISO 8601, UTC; ``canary``: what the candidate went through, None without one."""

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
    given: GatePolicy | None = None,
    accept_new_policy: bool = False,
) -> PendingDecision:
    """Read the versions and the policy that a decision needs.

    Args:
        client: The tracking server and registry.
        name: The registered model.
        version: The candidate.
        alias: The alias to move.
        given: A policy to apply now, for example a project's; None means the one that the candidate's training recorded.
        accept_new_policy: Allow a policy that differs from the recorded one.

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
    policy = policy_now(given, trained) if given is not None else trained or WrittenPolicy(GatePolicy())
    pending = PendingDecision(name, alias, candidate, champion, policy, trained.digest if trained is not None else None)
    if pending.is_policy_changed and not accept_new_policy:
        before = trained or WrittenPolicy(GatePolicy())
        raise GateError(
            f"{name}/{version}: the policy has changed since its training wrote it down ({policy.digest[:12]}, was "
            f"{before.digest[:12]}): {'; '.join(_changes(before, policy))}; fix: leave it as it was, or --accept-new-policy (-P accept_new_policy=true)"
        )
    return pending


def decide(pending: PendingDecision, sources: Sources, say: Callable[[str], None]) -> Decision:
    """Collects what the policy asks for, and judges. Raises what ``collect`` raises."""
    collected = collect(pending.policy.policy, pending.candidate, pending.champion, sources, say)
    verdict = judge(pending.policy.policy, collected.evidence)
    return Decision(**vars(pending), verdict=verdict, evidence=collected.evidence, notes=collected.notes, when=now())


def _changes(before: WrittenPolicy, after: WrittenPolicy) -> list[str]:
    """Each part that differs, as ``key: before -> after``."""
    old, new = before.policy.model_dump(mode="json"), after.policy.model_dump(mode="json")
    told = [f"{key}: {old[key]} -> {new[key]}" for key in new if old.get(key) != new[key]]
    if dict(before.files) != dict(after.files):
        told.append("the rows of a regression file")
    return told
