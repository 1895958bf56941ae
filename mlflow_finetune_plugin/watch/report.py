"""A check for readers: an HTML page with its pictures, JSON with all of it, lines for a terminal."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from matplotlib.figure import Figure

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.gate.policy import VotesPolicy
from mlflow_finetune_plugin.gate.vote_test import run_vote_test
from mlflow_finetune_plugin.gate.watch_evidence import NotMeasured
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.promotion.pictures import COLORS, plot_intervals, plot_votes
from mlflow_finetune_plugin.promotion.report import STYLE, picture
from mlflow_finetune_plugin.watch.check import WatchCheck


def check_json(check: WatchCheck) -> str:
    """Return all that the page shows, as JSON (RFC 8259)."""
    return json.dumps(check_content(check), indent=1, ensure_ascii=False, allow_nan=False)


def check_content(check: WatchCheck) -> dict[str, Any]:
    """Return all that the page shows, as JSON values."""
    watched = check.watched
    return {
        "mlflow_finetune": __version__,
        "model": watched.name,
        "champion": _version(watched.champion),
        "champion_since": None if watched.since is None else watched.since.isoformat(),
        "previous": _version(watched.previous) if isinstance(watched.previous, ProvenVersion) else None,
        "policy": check.policy.model_dump(mode="json"),
        "gate": watched.gate.model_dump(mode="json"),
        "verdict": json.loads(check.verdict.to_json()),
        "notes": list(check.notes),
        "looked_at": check.when,
    }


def check_page(check: WatchCheck) -> str:
    """Return one HTML page without scripts or external links."""
    verdict = check.verdict
    title = f"{check.watched.name}: watch of version {check.watched.champion.number}"
    badge = f'<span class="verdict" style="background:{COLORS[verdict.outcome]}">{verdict.outcome}</span>'
    rows = "".join(
        f'<tr><td>{escape(f.name)}</td><td style="color:{COLORS[f.outcome]}">{f.outcome}</td>'
        f"<td>{escape(f.reason)}</td></tr>"
        for f in verdict.findings
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in check.notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)} {badge}</h1>"
        f'<p>{escape(verdict.reason)}</p><p class="soft">{escape(_who(check))}; checked {escape(check.when)}</p>'
        f"<h2>Findings</h2><table><tr><th>criterion</th><th>outcome</th><th>why</th></tr>{rows}</table>"
        f"{picture('Intervals', plot_intervals(verdict.findings))}{picture('Votes', _votes(check))}"
        f"{f'<h2>Notes</h2><ul>{notes}</ul>' if notes else ''}"
        f"<h2>Policy</h2><pre>{escape(json.dumps(check.policy.model_dump(mode='json'), indent=1))}</pre></html>"
    )


def check_lines(check: WatchCheck) -> list[str]:
    """Return the lines for a terminal: the verdict first, then the versions, notes and findings."""
    verdict = check.verdict
    lines = [f"{verdict.outcome}: {check.watched.name}, {_who(check)}"]
    # The findings say why, except where no rollback is possible, and where nothing could be measured.
    outcomes = {finding.outcome for finding in verdict.findings}
    if verdict.outcome not in outcomes or "roll back" in outcomes - {verdict.outcome}:
        lines.append(f"  reason        {verdict.reason}")
    lines += [f"  note          {note}" for note in check.notes]
    return lines + [f"  {f.outcome:<13} {f.name}: {f.reason}" for f in verdict.findings]


def _who(check: WatchCheck) -> str:
    watched = check.watched
    since = f" since {watched.since:%Y-%m-%d %H:%M} UTC" if watched.since is not None else ""
    previous = watched.previous
    other = previous.why if isinstance(previous, NotMeasured) else f"previous is version {previous.number}"
    if watched.no_rollback is not None and not isinstance(previous, NotMeasured):
        other += ", which was rolled back itself"
    return f"champion is version {watched.champion.number}{since}, {other}"


def _version(version: ProvenVersion) -> dict[str, str]:
    return {"version": version.number, "adapter_digest": version.adapter_digest}


def _votes(check: WatchCheck) -> Figure | None:
    votes, policy = check.evidence.votes, check.watched.gate.votes or VotesPolicy()
    if isinstance(votes, NotMeasured):
        return None
    return plot_votes(run_vote_test(policy, votes), unit=policy.unit, minimum=policy.minimum, candidate="previous")
