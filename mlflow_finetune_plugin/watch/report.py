"""A look at a champion as people read it: one page that holds its pictures, JSON that holds all of it, lines for a terminal."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from matplotlib.figure import Figure

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.promotion.pictures import COLORS, plot_intervals, plot_votes
from mlflow_finetune_plugin.promotion.proven_version import ProvenVersion
from mlflow_finetune_plugin.promotion.report import STYLE, picture
from mlflow_finetune_plugin.watch.check import Look


def look_json(look: Look, *, indent: int | None = 1) -> str:
    """RFC 8259; everything that the page says. ``indent`` None: one line."""
    watched = look.watched
    content: dict[str, Any] = {
        "mlflow_finetune": __version__,
        "model": watched.name,
        "champion": _version(watched.champion),
        "champion_since": None if watched.since is None else watched.since.isoformat(),
        "previous": _version(watched.previous) if isinstance(watched.previous, ProvenVersion) else None,
        "policy": look.policy.model_dump(mode="json"),
        "gate": watched.gate.model_dump(mode="json"),
        "verdict": json.loads(look.verdict.to_json()),
        "notes": list(look.notes),
        "looked_at": look.when,
    }
    return json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)


def look_page(look: Look) -> str:
    """One HTML file without scripts or links to elsewhere."""
    verdict = look.verdict
    title = f"{look.watched.name}: watch of version {look.watched.champion.number}"
    badge = f'<span class="verdict" style="background:{COLORS[verdict.outcome]}">{verdict.outcome}</span>'
    rows = "".join(
        f'<tr><td>{escape(f.name)}</td><td style="color:{COLORS[f.outcome]}">{f.outcome}</td><td>{escape(f.reason)}</td></tr>'
        for f in verdict.findings
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in look.notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)} {badge}</h1>"
        f'<p>{escape(verdict.reason)}</p><p class="soft">{escape(_who(look))}; looked at {escape(look.when)}</p>'
        f"<h2>Findings</h2><table><tr><th>watched</th><th>outcome</th><th>why</th></tr>{rows}</table>"
        f"{picture('Intervals', plot_intervals(verdict.findings))}{picture('Votes', _votes(look))}"
        f"{f'<h2>Notes</h2><ul>{notes}</ul>' if notes else ''}"
        f"<h2>Policy</h2><pre>{escape(json.dumps(look.policy.model_dump(mode='json'), indent=1))}</pre></html>"
    )


def look_lines(look: Look) -> list[str]:
    """As a terminal shows it."""
    lines = [f"{look.watched.name}: {_who(look)}"]
    lines += [f"  note          {note}" for note in look.notes]
    lines += [f"  {f.outcome:<13} {f.name}: {f.reason}" for f in look.verdict.findings]
    return [*lines, f"  verdict       {look.verdict.outcome}: {look.verdict.reason}"]


def _who(look: Look) -> str:
    watched = look.watched
    since = f" since {watched.since:%Y-%m-%d %H:%M} UTC" if watched.since is not None else ""
    previous = watched.previous
    other = previous.why if isinstance(previous, NotMeasured) else f"previous is version {previous.number}"
    if watched.no_way_back is not None and not isinstance(previous, NotMeasured):
        other += ", which was itself rolled back from"
    return f"champion is version {watched.champion.number}{since}, {other}"


def _version(version: ProvenVersion) -> dict[str, str]:
    return {"version": version.number, "adapter_digest": version.adapter_digest}


def _votes(look: Look) -> Figure | None:
    votes, policy = look.evidence.votes, look.watched.gate.votes or VotesPolicy()
    if isinstance(votes, NotMeasured):
        return None
    return plot_votes(
        votes,
        unit=policy.unit,
        per_voter=policy.per_voter,
        alpha=policy.alpha,
        minimum=policy.minimum,
        candidate="previous",
    )
