"""What a move is about to do, written down before it does it: a tag of the registered model, and what it carries."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.store.names import INTENT_TAG

REASON_LIMIT = 1000
"""Characters: an intent has to fit into a registered model's tag, which SQL stores cut or refuse at 5,000."""

Kind = Literal["promote", "rollback"]


@dataclass(frozen=True)
class MoveEvidence:
    """Why a version may become champion.

    ``run_id`` is the decision's run, in the experiment ``NAME.promotions``; None lets the move make one. ``champion`` is
    the version that the candidate was judged against, None where there was none. Digests are sha256, hexadecimal; those
    of the adapters are of their weights, None where not known.
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
    """One move: ``alias`` from a version (None: it did not exist) to another.

    ``previous`` is what the alias previous is to name afterwards, None where it is left alone. ``expected`` is what the
    last recorded move had left the alias at: where that is not ``from_version``, somebody moved it by hand in between.
    ``when`` is ISO 8601, UTC.
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
        """A promotion's reason is its evidence's, and written once."""
        content = asdict(self)
        if content["evidence"] is not None:
            content["evidence"]["reason"] = ""
        return json.dumps(content, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Intent:
        """Raises MoveError for what no move of this package has written."""
        try:
            content: dict[str, Any] = json.loads(text)
            evidence = content.pop("evidence")
            move_evidence = None if evidence is None else MoveEvidence(**{**evidence, "reason": content["reason"]})
            return cls(**content, evidence=move_evidence)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MoveError(
                f"the tag {INTENT_TAG!r} of the registered model holds no move: {text[:200]!r}; fix: see what the aliases "
                "should name, set them, then delete the tag"
            ) from error
