"""Rank three or more models that were compared two at a time: Bradley-Terry strengths, with intervals over voters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.evaluation.results import Interval

Array = NDArray[np.float64]

_STEPS = 10_000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """One voter's answer on two models: 1 for the first, 0 for the second, 0.5 for a tie or both bad.

    Raises:
        GateError: The score is another one, or a model is compared with itself.
    """

    voter: str
    first: str
    second: str
    score: float

    def __post_init__(self) -> None:
        if self.score not in (0, 0.5, 1):
            raise GateError(f"a comparison scored {self.score}; fix: give 1 (first), 0 (second) or 0.5 (neither)")
        if self.first == self.second:
            raise GateError(f"{self.first!r} is compared with itself; fix: leave such rows out")


@dataclass(frozen=True)
class RankedModel:
    """A model with its strength, in log odds against the average of its group. ``points`` are wins plus half the ties."""

    name: str
    strength: Interval
    points: float
    comparisons: int


@dataclass(frozen=True)
class Ranking:
    """Models from strong to weak, group by group. ``notes`` say what the comparisons cannot decide."""

    models: tuple[RankedModel, ...]
    groups: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def win_probability(self, first: str, second: str) -> float:
        """Return P(``first`` is preferred). Raises GateError for unknown models, and for models of different groups."""
        if not any(first in group and second in group for group in self.groups):
            raise GateError(f"nothing links {first!r} with {second!r}; fix: collect comparisons between them")
        strengths = {model.name: model.strength.value for model in self.models}
        return 1 / (1 + math.exp(strengths[second] - strengths[first]))


def rank(
    comparisons: Sequence[Comparison],
    *,
    prior_votes: float = 1.0,
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = 1000,
) -> Ranking:
    """Return the strengths by penalised maximum likelihood: P(i over j) = 1 / (1 + exp(s_j - s_i)); a tie is half a win each.

    Source: Bradley and Terry 1952, Biometrika 39, 324-345; fitted by the MM algorithm of Hunter 2004, Annals of Statistics 32,
    384-406, section 2. Percentile intervals resample whole voters (Davison and Hinkley 1997, section 3.8), because the votes
    of one voter are not independent.

    The likelihood has a maximum only where no set of models won all its comparisons with the others (Ford 1957, American
    Mathematical Monthly 64, 28-33). Resamples of few voters often violate this even where the data do not. So each model also
    draws ``prior_votes`` comparisons with an average model, half a vote each way by default (Caron and Doucet 2012, JCGS 21,
    174-196, section 2). Where only these bound a strength, its interval is open on that side, and a note says so. Models that
    no chain of comparisons links are ranked in separate groups.

    Raises:
        GateError: There is no comparison, or the maximum does not exist for ``prior_votes=0`` (plain maximum likelihood).
    """
    if not comparisons:
        raise GateError("no comparison to rank by; fix: collect votes first")
    if not 0 <= prior_votes < math.inf:
        raise GateError(f"prior_votes is {prior_votes}; fix: give 0 or more")
    names = sorted({name for c in comparisons for name in (c.first, c.second)})
    per_voter = _points_per_voter(comparisons, names)  # (voters, models, models)
    points = per_voter.sum(axis=0)
    groups, notes = _groups(points, names)
    winners = [_winners(points, group) for group in groups]
    notes += [
        f"one-sided: no other side took a point from {', '.join(names[i] for i in sorted(won))}, "
        "so only the prior bounds how far ahead"
        for won in winners
        if won
    ]
    if prior_votes == 0 and notes:
        raise GateError(f"no maximum likelihood: {'; '.join(notes)}; fix: give prior_votes above 0")
    strengths = _strengths(points[None], groups, prior_votes)[0]
    spread = _resampled_strengths(per_voter, groups, max(prior_votes, _TOLERANCE), seed, n_resamples)
    lows, highs = _ends(spread, confidence, groups, winners)
    if len(per_voter) == 1:
        notes.append("one voter has no spread, so no strength has an interval")
        lows, highs = np.full_like(lows, -math.inf), np.full_like(highs, math.inf)
    method = f"Bradley-Terry, bootstrap over {len(per_voter)} voters, {n_resamples} resamples"
    models = [
        RankedModel(
            name=names[i],
            strength=Interval(float(strengths[i]), float(lows[i]), float(highs[i]), method),
            points=float(points[i].sum()),
            comparisons=round(float(points[i].sum() + points[:, i].sum())),
        )
        for group in groups
        for i in sorted(group, key=lambda i: -strengths[i])
    ]
    return Ranking(tuple(models), tuple(tuple(names[i] for i in group) for group in groups), tuple(notes))


def _ends(spread: Array, confidence: float, groups: list[list[int]], winners: list[set[int]]) -> tuple[Array, Array]:
    """Return the percentiles of the resamples (resamples, models), open where only the prior bounds a strength."""
    tail = (1 - confidence) / 2
    lows, highs = np.quantile(spread, [tail, 1 - tail], axis=0)
    for group, won in zip(groups, winners, strict=True):
        if won:
            highs[sorted(won)], lows[sorted(set(group) - won)] = math.inf, -math.inf
    return lows, highs


def _points_per_voter(comparisons: Sequence[Comparison], names: list[str]) -> Array:
    """Return the points that voter v gave model i against model j, as entry (v, i, j)."""
    model = {name: i for i, name in enumerate(names)}
    voter = {name: i for i, name in enumerate(dict.fromkeys(c.voter for c in comparisons))}
    points = np.zeros((len(voter), len(names), len(names)))
    for c in comparisons:
        points[voter[c.voter], model[c.first], model[c.second]] += c.score
        points[voter[c.voter], model[c.second], model[c.first]] += 1 - c.score
    return points


def _groups(points: Array, names: list[str]) -> tuple[list[list[int]], list[str]]:
    """Return the groups of models that comparisons link, and a note where there are several."""
    _, linked = connected_components(points > 0, directed=True, connection="weak")
    groups = [np.flatnonzero(linked == g).tolist() for g in range(linked.max() + 1)]
    if len(groups) == 1:
        return groups, []
    listed = " | ".join(", ".join(names[i] for i in group) for group in groups)
    return groups, [f"no comparison links these groups, so their strengths cannot be compared: {listed}"]


def _winners(points: Array, group: list[int]) -> set[int]:
    """Return the models of the group that the others took no point from; models linked by points both ways count as equals."""
    _, level = connected_components(points > 0, directed=True, connection="strong")
    winners: set[int] = set()
    for part in dict.fromkeys(level[group]):
        inside = {i for i in group if level[i] == part}
        outside = sorted(set(group) - inside)
        if outside and not points[np.ix_(outside, sorted(inside))].any():
            winners |= inside
    return winners


def _resampled_strengths(
    per_voter: Array, groups: list[list[int]], prior_votes: float, seed: int, n_resamples: int
) -> Array:
    voters = len(per_voter)
    drawn = np.random.default_rng(seed).multinomial(voters, np.full(voters, 1 / voters), n_resamples)
    points = np.asarray(np.tensordot(drawn, per_voter, axes=1), dtype=np.float64)
    return _strengths(points, groups, prior_votes)


def _strengths(points: Array, groups: list[list[int]], prior_votes: float) -> Array:
    """Return the log strengths for each table of points (tables, models, models), centred per group; (tables, models)."""
    games = points + points.swapaxes(1, 2)
    won = points.sum(axis=2) + prior_votes / 2
    worth = np.ones(won.shape)
    for _ in range(_STEPS):
        met = (games / (worth[:, :, None] + worth[:, None, :])).sum(axis=2) + prior_votes / (worth + 1)
        after = won / met
        if prior_votes == 0:
            after /= np.exp(np.log(after).mean(axis=1, keepdims=True))
        moved = np.abs(np.log(after / worth)).max()
        worth = after
        if moved < _TOLERANCE:
            break
    strengths = np.log(worth)
    for group in groups:
        strengths[:, group] -= strengths[:, group].mean(axis=1, keepdims=True)
    return np.asarray(strengths)
