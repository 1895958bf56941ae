"""Agreement of people who judged the same prompt: Krippendorff's alpha, and the plain share. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations

from mlflow_finetune_plugin.votes.mlflow.feedback import MirroredVote


@dataclass(frozen=True)
class VoterAgreement:
    """How far voters agree on ``prompts`` that two or more of ``voters`` judged.

    Each two voters on one prompt are one of ``pairs``; in ``agreeing`` of them both votes are the same. ``alpha``
    compares this with chance: 1 is perfect, 0 is what voters would agree by chance, below 0 is less. It is None where
    all votes are alike, or where no prompt has two voters.
    """

    alpha: float | None
    agreeing: int
    pairs: int
    prompts: int
    voters: int


def voter_agreement(votes: Sequence[MirroredVote]) -> VoterAgreement:
    """Return the agreement in people's votes, which are all between the same two versions (``Reading.between``).

    The unit is a prompt (by its digest), so people count together who saw different answers of the same two versions:
    answers that vary make agreement lower than it would be on the same two texts. The value is the version preferred, a
    tie, or both bad. A voter who judged a prompt more than once counts with the first vote. All visitors without a
    login are one voter.
    """
    verdicts: dict[str, dict[str, Hashable]] = {}
    for vote in votes:
        verdict = vote.choice if vote.winner is None else ("prefers", vote.winner.version)
        verdicts.setdefault(vote.prompt_digest, {}).setdefault(vote.voter, verdict)
    shared = [by_voter for by_voter in verdicts.values() if len(by_voter) > 1]
    units = [tuple(by_voter.values()) for by_voter in shared]
    pairs = [first == second for unit in units for first, second in combinations(unit, 2)]
    return VoterAgreement(
        alpha=krippendorff_alpha(units),
        agreeing=sum(pairs),
        pairs=len(pairs),
        prompts=len(units),
        voters=len({voter for by_voter in shared for voter in by_voter}),
    )


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Return nominal alpha = 1 - observed / expected disagreement; each unit holds one value per voter who judged it.

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: every ordered pair of values within a
    unit of m values weighs 1 / (m - 1); n values in all that can be paired, n_c of them c, and o_cc pairs of c with c:

        alpha = ((n - 1) * sum o_cc - sum n_c (n_c - 1)) / (n (n - 1) - sum n_c (n_c - 1)).

    Voters may have judged different units. The result is None without two values in a unit, or where all values are the
    same.
    """
    matching = 0.0
    totals: Counter[Hashable] = Counter()
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        totals += counts
        matching += sum(count * (count - 1) for count in counts.values()) / (len(unit) - 1)
    n = totals.total()
    by_chance = sum(count * (count - 1) for count in totals.values())
    if n * (n - 1) == by_chance:
        return None
    return ((n - 1) * matching - by_chance) / (n * (n - 1) - by_chance)
