"""Render the history of moves, the gate's progress and its verdict as HTML. Every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gradio_app.html_parts import empty, note_html, outcome_html, soft, table_head
from gradio_app.versions.promotion import PromotionEnd
from mlflow_finetune_plugin.promotion.moves.audit import Record

_MOST_MOVES = 100
_ENDS = {
    "promoted": ("mf-good", "Promoted"),
    "held": ("", "Held: nothing was moved"),
    "rejected": ("mf-bad", "Rejected: nothing was moved"),
    "fault": ("mf-bad", "The gate failed"),
}


def history_html(records: Sequence[Record], *, is_cut_off: bool = False) -> str:
    """Return the newest moves, newest first. ``is_cut_off`` says that a move began and is not settled yet."""
    begun = (
        note_html("A move is running, or was interrupted. The next promotion or rollback settles it first.")
        if is_cut_off
        else ""
    )
    if not records:
        return begun + empty("No alias has been moved yet.", "Pick a version and promote it: the gate judges it first.")
    rows = "".join(
        f"<tr><td>{escape(record.when[:16].replace('T', ' '))}</td><td>{_moved(record)}</td><td>{escape(record.alias)}</td>"
        f"<td>{escape(record.from_version or 'none')} → {escape(record.to_version or 'none')}</td><td>{escape(record.who)}</td>"
        f'<td class="mf-why">{escape(record.reason)}</td></tr>'
        for record in records[:_MOST_MOVES]
    )
    older = (
        ""
        if len(records) <= _MOST_MOVES
        else f'<p class="mf-soft">{len(records) - _MOST_MOVES:,} older moves are not listed.</p>'
    )
    heads = ("When (UTC)", "What", "Alias", "Version", "Who", "Why")
    return f'{begun}<div class="mf-scroll"><table class="mf-table">{table_head(heads)}<tbody>{rows}</tbody></table></div>{older}'


def verdict_html(version: str, end: PromotionEnd) -> str:
    kind, head = _ENDS[end.outcome]
    rows = "".join(
        f'<tr><th scope="row">{escape(criterion.name)}</th><td>{outcome_html(criterion.outcome, is_finding=True)}</td><td class="mf-why">{escape(criterion.reason)}</td></tr>'
        for criterion in end.findings
    )
    table = f'<div class="mf-scroll"><table class="mf-table">{table_head(("Criterion", "Outcome", "Why"))}<tbody>{rows}</tbody></table></div>'
    notes = "".join(soft(note) for note in end.notes)
    notice = note_html(f"Version {version}, {end.when:%Y-%m-%d %H:%M} UTC. {head}. {end.reason}", kind)
    return (
        f'<section class="mf-card" aria-label="Verdict" role="status">{notice}{table if rows else ""}{notes}</section>'
    )


def progress_html(version: str, lines: Sequence[str], seconds: float) -> str:
    output = escape("\n".join(lines)) or "starting"
    return (
        f'<section class="mf-card" role="status" aria-label="Progress">{soft(f"The gate judges version {version}, for {seconds:.0f} s. You can leave this page; the gate continues.")}'
        f'<pre class="mf-lines">{output}</pre></section>'
    )


def _moved(record: Record) -> str:
    if record.is_moved:
        return escape({"unexplained": "moved outside this project"}.get(record.kind, record.kind))
    return outcome_html(record.outcome) if record.outcome in ("hold", "reject") else f"{escape(record.kind)}, not moved"
