"""A decision for readers: an HTML page with its pictures, JSON with all of it, lines for a terminal."""

from __future__ import annotations

import base64
import io
import json
from html import escape
from typing import Any

from matplotlib.figure import Figure

from mlflow_finetune_plugin import __version__
from mlflow_finetune_plugin.gate.vote_test import run_vote_test
from mlflow_finetune_plugin.promotion.decision import Decision
from mlflow_finetune_plugin.promotion.pictures import COLORS, plot_intervals, plot_votes

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1f2328;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid #d1d9e0}
.verdict{display:inline-block;padding:.15rem .6rem;border-radius:.4rem;color:#fff;font-weight:600}
.soft{color:#59636e}img{max-width:100%}code{font-size:.9em}
@media(prefers-color-scheme:dark){body{color:#f0f6fc;background:#0d1117}td,th{border-color:#3d444d}.soft{color:#9198a1}
img{background:#fff;border-radius:.4rem}}
"""
_VERDICTS = {"promote": COLORS["pass"], "hold": COLORS["hold"], "reject": COLORS["reject"]}


def decision_json(decision: Decision) -> str:
    """Return all that the page shows, as JSON (RFC 8259)."""
    return json.dumps(decision_content(decision), indent=1, ensure_ascii=False, allow_nan=False)


def decision_content(decision: Decision) -> dict[str, Any]:
    """Return all that the page shows, as JSON values."""
    return {
        "mlflow_finetune": __version__,
        "model": decision.name,
        "alias": decision.alias,
        "candidate": {"version": decision.candidate.number, "adapter_digest": decision.candidate.adapter_digest},
        "champion": None
        if decision.champion is None
        else {"version": decision.champion.number, "adapter_digest": decision.champion.adapter_digest},
        "policy": json.loads(decision.policy.to_json()),
        "policy_of_training": decision.trained_policy_digest,
        "policy_is_changed": decision.is_policy_changed,
        "verdict": json.loads(decision.verdict.to_json()),
        "canary": decision.canary.to_json() if decision.canary is not None else None,
        "notes": list(decision.notes),
        "decided_at": decision.when,
    }


def decision_page(decision: Decision) -> str:
    """Return one HTML page without scripts or external links."""
    verdict = decision.verdict
    over = "no champion yet" if decision.champion is None else f"champion: version {decision.champion.number}"
    title = f"{decision.name} version {decision.candidate.number} for {decision.alias}"
    badge = f'<span class="verdict" style="background:{_VERDICTS[verdict.outcome]}">{verdict.outcome}</span>'
    rows = "".join(
        f'<tr><td>{escape(f.name)}</td><td style="color:{COLORS[f.outcome]}">{f.outcome}</td>'
        f"<td>{escape(f.reason)}</td></tr>"
        for f in verdict.findings
    )
    changed = (
        "<p><strong>The policy was changed after the training run</strong> that wrote "
        f"<code>{escape(str(decision.trained_policy_digest)[:12])}</code>, and was accepted with "
        "--accept-new-policy.</p>"
        if decision.is_policy_changed
        else ""
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in decision.notes)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)} {badge}</h1>"
        f'<p>{escape(verdict.reason)}</p><p class="soft">{escape(over)}; decided {escape(decision.when)}; policy '
        f"<code>{decision.policy.digest[:12]}</code></p>{changed}"
        f"<h2>Findings</h2><table><tr><th>criterion</th><th>outcome</th><th>why</th></tr>{rows}</table>"
        f"{decision.canary.page() if decision.canary is not None else ''}"
        f"{picture('Intervals', plot_intervals(verdict.findings))}{picture('Votes', _votes(decision))}"
        f"{f'<h2>Notes</h2><ul>{notes}</ul>' if notes else ''}"
        f"<h2>Policy</h2><pre>{escape(decision.policy.to_json())}</pre></html>"
    )


def decision_lines(decision: Decision) -> list[str]:
    """Return the lines for a terminal: the verdict first, then notes, canary steps and findings."""
    over = "there is no champion" if decision.champion is None else f"champion is version {decision.champion.number}"
    lines = [
        f"{decision.verdict.outcome}: {decision.name} version {decision.candidate.number} as {decision.alias} ({over})"
    ]
    if decision.is_policy_changed:
        lines.append(
            f"  policy   changed since the training: {decision.policy.digest[:12]}, "
            f"was {str(decision.trained_policy_digest)[:12]}"
        )
    lines += [f"  note     {note}" for note in decision.notes]
    lines += [f"  step     {step.text}" for step in (decision.canary.steps if decision.canary is not None else ())]
    return lines + [f"  {f.outcome:<8} {f.name}: {f.reason}" for f in decision.verdict.findings]


def _votes(decision: Decision) -> Figure | None:
    policy, evidence = decision.policy.policy.votes, decision.evidence.votes
    if policy is None or evidence is None:
        return None
    return plot_votes(run_vote_test(policy, evidence), unit=policy.unit, minimum=policy.minimum)


def picture(heading: str, figure: Figure | None) -> str:
    """Return HTML that contains the figure; empty without a figure."""
    if figure is None:
        return ""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    data = base64.b64encode(content.getvalue()).decode("ascii")
    return f'<h2>{heading}</h2><img alt="{heading.lower()}" src="data:image/png;base64,{data}">'
