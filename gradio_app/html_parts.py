"""What the tabs' HTML has in common. All texts are escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")

CSS = """
.mf-scroll { overflow-x: auto; }
.mf-table { border-collapse: collapse; width: 100%; font-size: .92rem; color: var(--body-text-color); }
.mf-table th, .mf-table td { padding: .45rem .8rem .45rem 0; border-bottom: 1px solid var(--border-color-primary);
  text-align: left; vertical-align: top; }
.mf-table th { font-weight: 600; } .mf-table thead th { color: var(--body-text-color-subdued); white-space: nowrap; }
.mf-table tr.mf-picked > * { background: var(--background-fill-secondary); }
.mf-table .mf-why { min-width: 14rem; }
.mf-soft { color: var(--body-text-color-subdued); font-size: .9rem; margin: .3rem 0; }
.mf-card h3 { font-size: 1.15rem; font-weight: 700; margin: .8rem 0 .3rem; color: var(--body-text-color); }
.mf-card h4 { font-size: 1rem; font-weight: 600; margin: 1.2rem 0 .3rem; color: var(--body-text-color); }
.mf-card code, .mf-table code { font-size: .85em; overflow-wrap: anywhere; }
.mf-badge { display: inline-block; border: 1px solid var(--border-color-primary); border-radius: 1rem; padding: 0 .55rem;
  margin: 0 .25rem .15rem 0; font-size: .82rem; white-space: nowrap; background: var(--background-fill-secondary); }
.mf-badge.mf-champion { border-color: var(--color-accent); font-weight: 600; }
.mf-pick { font: inherit; color: inherit; background: none; border: 0; padding: 0; text-decoration: underline;
  text-underline-offset: .2em; cursor: pointer; font-weight: 600; white-space: nowrap; }
.mf-pick:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
.mf-is-good, .mf-is-bad, .mf-is-warn { font-weight: 600; }
.mf-is-good { color: var(--mf-good, #1a7f37); } .mf-is-bad { color: var(--mf-bad, #cf222e); }
.mf-is-warn { color: var(--mf-warn, #9a6700); }
.dark .mf-is-good { color: var(--mf-good, #3fb950); } .dark .mf-is-bad { color: var(--mf-bad, #ff7b72); }
.dark .mf-is-warn { color: var(--mf-warn, #d29922); }
.mf-note { border-left: 4px solid var(--mf-warn, #d29922); background: var(--background-fill-secondary); margin: .5rem 0;
  padding: .5rem .9rem; border-radius: 0 8px 8px 0; color: var(--body-text-color); overflow-wrap: anywhere; white-space: pre-line; }
.mf-note.mf-good { border-color: var(--mf-good, #1a7f37); } .mf-note.mf-bad { border-color: var(--mf-bad, #cf222e); }
.mf-lines { margin: .4rem 0; padding: .6rem .9rem; border-radius: 8px; background: var(--background-fill-secondary);
  border: 1px solid var(--border-color-primary); color: var(--body-text-color); white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; max-height: 16rem; overflow-y: auto; }
"""
_OUTCOMES = {
    "promote": ("mf-is-good", "passed the gate"),
    "hold": ("mf-is-warn", "held by the gate"),
    "reject": ("mf-is-bad", "rejected by the gate"),
    "pass": ("mf-is-good", "pass"),
}


def note_html(text: str, kind: str = "") -> str:
    """``kind``: mf-good, mf-bad, or nothing for a caution."""
    return f'<p class="{f"mf-note {kind}".strip()}" role="status">{escape(text)}</p>'


def empty(what: str, remedy: str) -> str:
    return f'<p class="mf-note">{escape(what)} {escape(remedy)}</p>'


def outcome_html(outcome: str, *, is_finding: bool = False) -> str:
    """Of a verdict, or of one finding in it, in words and colour."""
    kind, text = _OUTCOMES.get(outcome, ("", outcome))
    return f'<span class="{kind}">{escape(outcome if is_finding else text)}</span>'


def table_head(heads: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return f"<thead><tr>{cells}</tr></thead>"


def soft(text: str) -> str:
    return f'<span class="mf-soft">{escape(text)}</span>'


def tags_as_text(markdown: str) -> str:
    """Markdown whose HTML is shown as it was written, not rendered: what a model says is no part of the page.

    Code stays as it is, for there Markdown shows tags by itself. Where this and a renderer differ on what is code, a tag
    is at worst left to the page's sanitizer and its policy, which hold it off too.
    """
    told: list[str] = []
    prose: list[str] = []
    fence = ""

    def end_prose() -> None:
        told.append(_escaped("".join(prose)))
        prose.clear()

    for line in markdown.splitlines(keepends=True):
        found = _FENCE.match(line)
        if fence:
            told.append(line)
            closes = found is not None and found[1].startswith(fence) and not line[found.end() :].strip()
            fence = "" if closes else fence
        elif found is not None and not (found[1][0] == "`" and "`" in line[found.end() :]):
            end_prose()
            told.append(line)
            fence = found[1]
        else:
            prose.append(line)
    end_prose()
    return "".join(told)


def _escaped(prose: str) -> str:
    told, end = [], 0
    for code in _CODE.finditer(prose):
        told += [_TAG.sub("&lt;", prose[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*told, _TAG.sub("&lt;", prose[end:])])
