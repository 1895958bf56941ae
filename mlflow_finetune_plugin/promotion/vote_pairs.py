"""The pairs of versions that the gate has tested by votes, as tags of the registered model: they share one error rate.

A pair gets its number when the gate first decides about it with as many voters as the policy needs, and keeps it: neither
votes that are deleted later nor pairs that only a few people voted on change the number of another pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_finetune_plugin.errors import MoveError
from mlflow_finetune_plugin.store.names import BASE, VOTE_PAIR_TAG
from mlflow_finetune_plugin.store.registered_model import read_model

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.promotion.decision import Decision


@dataclass(frozen=True)
class VotePair:
    """What a pair may spend of the error: its number, from 1, and how many earlier pairs had shown a better candidate.

    ``is_better`` says whether this pair's votes have shown one.
    """

    number: int
    discoveries: int
    is_better: bool = False


@dataclass(frozen=True)
class VotePairs:
    """The pairs of a registered model that were tested, by their two versions."""

    pairs: Mapping[frozenset[str], VotePair]

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> VotePairs:
        """Read them from the tags of the registered model. Raises MoveError for a tag that was changed."""
        pairs = {}
        for name, value in tags.items():
            if not name.startswith(VOTE_PAIR_TAG):
                continue
            try:
                pairs[frozenset(name.removeprefix(VOTE_PAIR_TAG).split("-"))] = VotePair(**json.loads(value))
            except (TypeError, ValueError) as error:
                raise MoveError(
                    f"the tag {name} of the registered model is {value!r}, which this package did not write; "
                    "fix: restore it from the report of the pair's first decision, or delete it to test the pair again"
                ) from error
        return cls(pairs)

    def pair(self, candidate: str, champion: str) -> VotePair:
        """Return the pair, or what it would be if it were tested now."""
        discoveries = sum(pair.is_better for pair in self.pairs.values())
        tested = self.pairs.get(frozenset({candidate, champion}))
        return tested or VotePair(max((pair.number for pair in self.pairs.values()), default=0) + 1, discoveries)


def read_vote_pairs(client: MlflowClient, model: str) -> VotePairs:
    """Raises MlflowException if the registry does not answer, MoveError for no such model or a tag that was changed."""
    return VotePairs.from_tags(read_model(client, model)[1])


def record_vote_pair(client: MlflowClient, decision: Decision) -> None:
    """Write the pair of a decision to the registered model, if its votes were enough to decide. Raises MlflowException."""
    policy, votes = decision.policy.policy.votes, decision.evidence.votes
    finding = next((finding for finding in decision.verdict.findings if finding.name == "votes"), None)
    if policy is None or votes is None or finding is None or int(finding.details.get("counted") or 0) < policy.minimum:
        return
    champion = BASE if decision.champion is None else decision.champion.number
    before = read_vote_pairs(client, decision.name).pair(decision.candidate.number, champion)
    judged_as = VotePair(votes.number or 1, votes.discoveries, is_better=before.is_better or finding.outcome == "pass")
    name = VOTE_PAIR_TAG + "-".join(sorted((decision.candidate.number, champion)))
    client.set_registered_model_tag(decision.name, name, json.dumps(vars(judged_as)))
