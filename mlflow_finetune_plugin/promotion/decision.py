"""A candidate, the champion, a policy, the evidence and the verdict, and how they come together."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import GateError, MoveError
from mlflow_finetune_plugin.gate.evidence import Evidence
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.gate.verdict import Verdict, judge
from mlflow_finetune_plugin.promotion.answers import Sources
from mlflow_finetune_plugin.promotion.collect import collect
from mlflow_finetune_plugin.promotion.moves.audit import now
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion, check_comparable, read_version
from mlflow_finetune_plugin.promotion.written_policy import WrittenPolicy, policy_now
from mlflow_finetune_plugin.store.names import CHALLENGER, CHAMPION, PREVIOUS
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.promotion.canary.course import CanaryCourse

EXIT_CODES = {"promote": 0, "hold": 3, "reject": 4}


@dataclass(frozen=True)
class Standing:
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
class Decision(Standing):
    """And what came of it. ``when``: ISO 8601, UTC; ``canary``: what the candidate went through, None without one."""

    verdict: Verdict
    evidence: Evidence = field(repr=False)
    notes: tuple[str, ...]
    when: str
    canary: CanaryCourse | None = None


def stand(
    client: MlflowClient,
    name: str,
    version: str | None,
    alias: str,
    *,
    given: GatePolicy | None = None,
    accept_new_policy: bool = False,
) -> Standing:
    """``version``: None takes the challenger. ``given``: a policy of now, e.g. a project's; None takes the candidate's own.

    Raises MoveError for a model, version or pair that cannot be judged, GateError for a policy that was changed and not accepted.
    """
    aliases, _ = read_model(client, name)
    number = version or aliases.get(CHALLENGER)
    if number is None:
        raise MoveError(f"{name}: has no alias {CHALLENGER!r}; fix: --version N")
    champion_number = aliases.get(alias)
    if alias in (PREVIOUS, "latest") or re.fullmatch(r"[vV]\d+", alias):
        raise MoveError(f"{name}: no version can be promoted to {alias!r}; fix: --to {CHAMPION}, or another alias")
    candidate = read_version(client, name, number)
    if candidate.number == champion_number:
        raise MoveError(f"{name}: version {candidate.number} is {alias} already; fix: nothing, or name another version")
    champion = read_version(client, name, champion_number) if champion_number is not None else None
    if champion is not None:
        check_comparable(candidate, champion)
    trained = candidate.policy
    policy = policy_now(given, trained) if given is not None else trained or WrittenPolicy(GatePolicy())
    standing = Standing(name, alias, candidate, champion, policy, trained.digest if trained is not None else None)
    if standing.is_policy_changed and not accept_new_policy:
        before = trained or WrittenPolicy(GatePolicy())
        raise GateError(
            f"{name}/{number}: the policy has changed since its training wrote it down ({policy.digest[:12]}, was "
            f"{before.digest[:12]}): {'; '.join(_changes(before, policy))}; fix: leave it as it was, or --accept-new-policy (-P accept_new_policy=true)"
        )
    return standing


def decide(standing: Standing, sources: Sources, say: Callable[[str], None]) -> Decision:
    """Collects what the policy asks for, and judges. Raises what ``collect`` raises."""
    collected = collect(standing.policy.policy, standing.candidate, standing.champion, sources, say)
    verdict = judge(standing.policy.policy, collected.evidence)
    return Decision(**vars(standing), verdict=verdict, evidence=collected.evidence, notes=collected.notes, when=now())


def _changes(before: WrittenPolicy, after: WrittenPolicy) -> list[str]:
    """Each part that differs, as ``key: before -> after``."""
    old, new = before.policy.model_dump(mode="json"), after.policy.model_dump(mode="json")
    told = [f"{key}: {old[key]} -> {new[key]}" for key in new if old.get(key) != new[key]]
    if dict(before.files) != dict(after.files):
        told.append("the rows of a regression file")
    return told
