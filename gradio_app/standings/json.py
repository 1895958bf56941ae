"""Standings as JSON, for programs. Shares are in [0, 1]; an end of an interval that is open is null.

::

    {"model": "my-bot", "votes": 31, "counted": 30, "not_counted": {"without two receipts": 1},
     "aliases": {"champion": "1"},
     "read_at": "2026-11-21T12:00:00+00:00", "fault": null,
     "pairs": [{"candidate": "2", "champion": "1", "is_hidden": false,
                "people": SUMMARY, "judges": [{"voter": "judge:gpt", "agreed": 7, "shared": 9, **SUMMARY}],
                "path": {"outcome": "better" | "worse" | "undecided", "sentence": "...", "unit": "voter" | "vote",
                         "boundary": 20.0, "minimum": 10, "decided_at": null, "still_needed": 12,
                         "open_voters": 0, "shared_prompts": null, "pair_number": 1, "terms_note": "",
                         "points": [{"scores": 0, "evidence_for": 1.0, "evidence_against": 1.0}, ...]},
                "agreement": {"alpha": 0.4, "agreeing": 7, "pairs": 9, "prompts": 9, "voters": 3},
                "tags": [GROUP, ...], "prompt_sets": [GROUP, ...]}],
     "ranking": null | {"models": [{"version": "2", "strength": INTERVAL, "points": 9.5, "comparisons": 15}, ...],
                        "groups": [["1", "2", "3"]], "notes": ["..."]}}

    SUMMARY   {"votes", "candidate_wins", "champion_wins", "ties", "both_bad", "win_rate": null | INTERVAL, "voters",
               "most_share", "is_flooded", "left": null | BIAS, "longer": null | BIAS}
    GROUP     {"name", "candidate_wins", "champion_wins", "ties", "both_bad", "win_rate": null | INTERVAL}
    BIAS      {"wins", "votes", "share": INTERVAL, "p", "is_suspect"}
    INTERVAL  {"value", "low", "high"}

A pair whose result is hidden (``"is_hidden": true``) has ``candidate``, ``champion``, and ``people`` with ``votes`` and
``voters`` alone. The prompt set named "" holds prompts that people typed. It holds no person's name or hash.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime
from typing import Any

from gradio_app.standings.standings import PairStanding, Standings, VoteGroup
from gradio_app.standings.vote_path import VotePath
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.ranking import Ranking
from mlflow_finetune_plugin.votes.checks import Bias, Summary

MOST_POINTS = 400
"""Points of a vote path; more would be on the same pixels."""


def standings_json(
    standings: Standings, *, read_at: datetime | None = None, fault: str | None = None
) -> dict[str, Any]:
    return {
        "model": standings.model,
        "votes": standings.votes,
        "counted": standings.counted,
        "not_counted": dict(standings.not_counted),
        "aliases": dict(standings.aliases),
        "read_at": None if read_at is None else read_at.isoformat(),
        "fault": fault,
        "pairs": [_pair(standing) for standing in standings.pairs],
        "ranking": None if standings.ranking is None else _ranking(standings.ranking),
    }


def thinned(count: int, most: int = MOST_POINTS) -> list[int]:
    """Return up to ``most`` of the indices 0 .. ``count`` - 1, evenly, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _pair(standing: PairStanding) -> dict[str, Any]:
    candidate, champion = standing.pair
    if standing.is_hidden:
        people = {"votes": standing.people.votes, "voters": standing.people.voters}
        return {"candidate": candidate, "champion": champion, "is_hidden": True, "people": people}
    return {
        "candidate": candidate,
        "champion": champion,
        "is_hidden": False,
        "people": _summary(standing.people),
        "judges": [
            {"voter": judge.voter, "agreed": judge.agreed, "shared": judge.shared, **_summary(judge.summary)}
            for judge in standing.judges
        ],
        "path": _path(standing.path) | {"terms_note": standing.terms_note},
        "agreement": asdict(standing.agreement),
        "tags": [_group(group) for group in standing.tags],
        "prompt_sets": [_group(group) for group in standing.prompt_sets],
    }


def _summary(summary: Summary) -> dict[str, Any]:
    return {
        "votes": summary.votes,
        "candidate_wins": summary.candidate_wins,
        "champion_wins": summary.champion_wins,
        "ties": summary.ties,
        "both_bad": summary.both_bad,
        "win_rate": _interval(summary.win_rate),
        "voters": summary.voters,
        "most_share": summary.most_share,
        "is_flooded": summary.is_flooded,
        "left": _bias(summary.left),
        "longer": _bias(summary.longer),
    }


def _path(path: VotePath) -> dict[str, Any]:
    return {
        "outcome": path.test.outcome,
        "sentence": path.sentence,
        "unit": path.policy.unit,
        "boundary": path.test.boundary,
        "minimum": path.policy.minimum,
        "decided_at": path.test.decided_at,
        "still_needed": path.test.still_needed,
        "open_voters": path.test.open_voters,
        "shared_prompts": path.test.prompts,
        "pair_number": path.pair_number,
        "points": [
            {
                "scores": i,
                "evidence_for": path.test.evidence_for[i],
                "evidence_against": path.test.evidence_against[i],
            }
            for i in thinned(path.scores + 1)
        ],
    }


def _group(group: VoteGroup) -> dict[str, Any]:
    return asdict(group) | {"win_rate": _interval(group.win_rate)}


def _ranking(ranking: Ranking) -> dict[str, Any]:
    models = [
        {
            "version": model.name,
            "strength": _interval(model.strength),
            "points": model.points,
            "comparisons": model.comparisons,
        }
        for model in ranking.models
    ]
    return {"models": models, "groups": [list(group) for group in ranking.groups], "notes": list(ranking.notes)}


def _bias(bias: Bias | None) -> dict[str, Any] | None:
    if bias is None:
        return None
    return {**asdict(bias), "share": _interval(bias.share), "is_suspect": bias.is_suspect}


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    ends = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in ends.items()}
