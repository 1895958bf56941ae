"""Follow the gate's test over the votes on two versions: the evidence after every score, and the decision. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_finetune_plugin.gate.evidence import Votes
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.vote_test import VoteTest, run_vote_test
from mlflow_finetune_plugin.store.names import BASE


@dataclass(frozen=True)
class VotePath:
    """The whole course of the gate's test of votes (``gate.vote_test``), and what it says in words.

    Args:
        candidate: The version of the candidate.
        champion: The version of the champion.
        policy: The terms of the test.
        test: Its state.
        pair_number: The number of the pair among those that the gate tested.
    """

    candidate: str
    champion: str
    policy: VotesPolicy
    test: VoteTest
    pair_number: int

    @property
    def scores(self) -> int:
        return self.test.counted

    @property
    def sentence(self) -> str:
        """Return the state of the test in one sentence."""
        test = self.test
        if test.outcome != "undecided":
            won, lost = (self.candidate, self.champion) if test.outcome == "better" else (self.champion, self.candidate)
            at = _count(test.decided_at or 0, self.unit_name)
            look = ", at a planned look" if test.deciding_look is not None else ""
            return f"Decided: {version_name(won)} is preferred to {version_name(lost)}, shown after {at}{look}."
        if not test.counted:
            return "Undecided: no vote prefers a side yet."
        highest = max(test.evidence_for[-1], test.evidence_against[-1])
        return f"Undecided: the evidence is {highest:.3g}, and {test.boundary:.3g} decides; {self.outlook}."

    @property
    def outlook(self) -> str:
        """Return what a decision still needs. The number is the gate's own estimate; without one the text says so."""
        test = self.test
        if test.lacks_prompts:
            return f"the voters would decide, but they share only {_count(test.prompts or 0, 'prompt')}: vote on more prompts"
        if test.still_needed is None:
            return f"how many more {self.unit_name}s will decide cannot be estimated yet"
        if test.still_needed == 0:  # Enough once open voters finish, or the minimum of scores is reached.
            missing = self.policy.minimum - test.counted
            if missing <= 0:
                return f"the {_count(test.open_voters, 'voter')} who can still vote will decide"
            return f"{_count(missing, self.unit_name, 'more ')} will decide: the policy needs at least {self.policy.minimum:,}"
        return f"about {_count(test.still_needed, self.unit_name, 'more ')} will decide, if they vote like those so far"

    @property
    def unit_name(self) -> str:
        return "voter" if self.policy.unit == "voter" else "decisive vote"

    @property
    def notes(self) -> list[str]:
        """Return what limits the evidence now: open voters, the next planned look, and prompts that voters share."""
        test, notes = self.test, []
        look = next((look for look in test.planned_looks if look.p_better is None), None)
        if test.open_voters:
            who = "1 voter has" if test.open_voters == 1 else f"{test.open_voters:,} voters have"
            notes.append(
                f"{who} cast fewer than {self.policy.per_voter} votes. Until they cast the others, or do not vote for "
                f"{self.policy.closes_after_h:g} hours, their missing votes count against a decision."
            )
        if look is not None and test.outcome == "undecided":
            notes.append(f"When the first {look.voters:,} voters are finished, less evidence is enough to decide.")
        if test.prompts is not None:
            notes.append(
                f"Voters share prompts. The first votes on the {_count(test.prompts, 'prompt')} must show the same, "
                "because one prompt can win the votes of many people."
            )
        return notes


def vote_path(votes: Votes, candidate: str, champion: str, *, policy: VotesPolicy) -> VotePath:
    """Return the path.

    Args:
        votes: between the two, with the number of the pair.
        candidate: version of the candidate.
        champion: version of the champion.
        policy: the terms of the test.
    """
    return VotePath(candidate, champion, policy, run_vote_test(policy, votes), votes.number or 1)


def version_name(version: str) -> str:
    """Return a version's name in a sentence: ``version 3``, ``the base``."""
    return "the base" if version == BASE else f"version {version}"


def _count(number: int, noun: str, more: str = "") -> str:
    return f"{number:,} {more}{noun}" if number == 1 else f"{number:,} {more}{noun}s"
