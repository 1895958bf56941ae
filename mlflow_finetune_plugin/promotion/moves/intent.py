"""The intent of a move, written to a tag of the registered model before the move."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.store.names import INTENT_TAG

REASON_LIMIT = 1000
"""Characters. An intent must fit into a tag of a registered model, which SQL stores cut or refuse at 5,000."""

Kind = Literal["promote", "rollback"]


@dataclass(frozen=True)
class MoveEvidence:
    """The reason why a version may become champion.

    Args:
        run_id: The decision's run, in the experiment ``NAME.promotions``; None lets the move create one.
        champion: The version that the candidate was compared with; None if there was none.
        policy_digest: SHA-256 (hex), as the digests of the adapters' weights.
        candidate_digest: None if unknown.
        champion_digest: None if unknown.
    """

    outcome: str
    policy_digest: str
    reason: str
    run_id: str | None = None
    champion: str | None = None
    candidate_digest: str | None = None
    champion_digest: str | None = None


@dataclass(frozen=True)
class Intent:
    """One move of ``alias`` from a version (None: the alias did not exist) to another.

    Args:
        previous: The version that the alias ``previous`` will name; None leaves it unchanged.
        expected: The version to which the last recorded move set the alias. If it is not ``from_version``, the alias
            was moved by hand in between.
        when: ISO 8601, UTC.
    """

    id: str
    kind: Kind
    alias: str
    from_version: str | None
    to_version: str
    previous: str | None
    expected: str | None
    who: str
    when: str
    reason: str
    evidence: MoveEvidence | None

    def to_json(self) -> str:
        """Return JSON. A promotion's reason equals its evidence's reason and is written once."""
        content = asdict(self)
        if content["evidence"] is not None:
            content["evidence"]["reason"] = ""
        return json.dumps(content, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Intent:
        """Parse a tag. Raises MoveError if no move of this package has written it."""
        try:
            content: dict[str, Any] = json.loads(text)
            evidence = content.pop("evidence")
            move_evidence = None if evidence is None else MoveEvidence(**{**evidence, "reason": content["reason"]})
            return cls(**content, evidence=move_evidence)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MoveError(
                f"the tag {INTENT_TAG!r} of the registered model is not a move: {text[:200]!r}; fix: see what the aliases "
                "should name, set them, then delete the tag"
            ) from error
