"""The state of a canary, stored in a tag of the registered model, and whether the process behind it is alive."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.promotion.moves.holder import Holder
from mlflow_finetune_plugin.promotion.moves.intent import MoveEvidence
from mlflow_finetune_plugin.store.names import CANARY, CANARY_ALIVE_TAG, CANARY_TAG, CHAMPION, SPLIT_TAG

HEARTBEAT_S = 20.0
DEAD_S = 180.0
"""A process without a heartbeat for this long is dead. Others wait ``SKEW_S`` longer, because clocks differ."""
SKEW_S = 120.0


@dataclass(frozen=True)
class CanaryState:
    """The state of a canary.

    Args:
        steps: Shares of the requests in percent.
        step: The current step, from 0.
        split_before: The split before the canary; None if no tag was set.
        begun: ISO 8601.
        heartbeat: Epoch seconds when this state was written. Later heartbeats are in the tag ``CANARY_ALIVE_TAG``.
    """

    id: str
    candidate: str
    champion: str
    steps: tuple[float, ...]
    step: int
    split_before: str | None
    split_now: str
    who: str
    pid: int
    machine: str
    begun: str
    heartbeat: float
    run_id: str | None
    policy_digest: str
    candidate_digest: str | None
    champion_digest: str | None
    alias: str = CHAMPION

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> CanaryState:
        """Parse a tag. Raises MoveError if no canary of this package has written it."""
        try:
            content: dict[str, Any] = json.loads(text)
            return cls(**{**content, "steps": tuple(float(step) for step in content["steps"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MoveError(
                f"the tag {CANARY_TAG!r} of the registered model holds no canary: {text[:200]!r}; fix: see that the tag "
                f"{SPLIT_TAG} is as it should be and take the alias {CANARY!r} away, then delete the tag"
            ) from error

    @property
    def share(self) -> float:
        """Percent."""
        return self.steps[self.step]

    @property
    def text(self) -> str:
        return f"a canary of version {self.candidate} at {self.share:g} %, begun {self.begun} by {self.who}"

    def is_own_split(self, split: str | None) -> bool:
        """Return whether this canary wrote the split at any step, because it may have been interrupted between two."""
        return split in {split_of(step) for step in self.steps}

    def is_alive(self, tags: Mapping[str, str]) -> bool:
        """``tags``: of the registered model."""
        last_s = max(self.heartbeat, _heartbeat(tags.get(f"{CANARY_ALIVE_TAG}{self.id}")))
        holder = Holder(self.id, self.who, self.pid, self.machine, last_s + DEAD_S)
        return not holder.is_over(now_s=time.time(), skew_s=SKEW_S)

    def evidence(self, outcome: str, reason: str) -> MoveEvidence:
        return MoveEvidence(
            outcome=outcome,
            policy_digest=self.policy_digest,
            reason=reason,
            run_id=self.run_id,
            champion=self.champion,
            candidate_digest=self.candidate_digest,
            champion_digest=self.champion_digest,
        )


def split_of(share: float) -> str:
    """``champion=95, canary=5`` for 5 percent."""
    return f"{CHAMPION}={100 - share:g}, {CANARY}={share:g}"


def read_state(tags: Mapping[str, str]) -> CanaryState | None:
    """Return the canary in the registered model's tags. Raises MoveError for an invalid tag."""
    text = tags.get(CANARY_TAG)
    return None if text is None else CanaryState.from_json(text)


def _heartbeat(text: str | None) -> float:
    try:
        return float(text) if text is not None else 0.0
    except ValueError:
        return 0.0  # without a heartbeat tag, the one in the state counts
