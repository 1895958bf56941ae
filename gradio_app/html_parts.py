"""Render the HTML that several tabs share. Every text is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_IMAGE = re.compile(r"(?<!\\)!(?=\[)")

_OUTCOMES = {
    "promote": ("mf-is-good", "passed the gate"),
    "hold": ("mf-is-warn", "held by the gate"),
    "reject": ("mf-is-bad", "rejected by the gate"),
    "pass": ("mf-is-good", "pass"),
}


def note_html(text: str, kind: str = "") -> str:
    """Return a note. ``kind`` is mf-good or mf-bad; empty means a caution."""
    return f'<p class="{f"mf-note {kind}".strip()}" role="status">{escape(text)}</p>'


def empty(what: str, remedy: str) -> str:
    return f'<p class="mf-note">{escape(what)} {escape(remedy)}</p>'


def outcome_html(outcome: str, *, is_finding: bool = False) -> str:
    """Return the outcome of a verdict, or of one of its criteria, in words and colour."""
    kind, text = _OUTCOMES.get(outcome, ("", outcome))
    return f'<span class="{kind}">{escape(outcome if is_finding else text)}</span>'


def table_head(heads: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    return f"<thead><tr>{cells}</tr></thead>"


def link(url: str, text: str) -> str:
    """Return a link that opens a new tab, which does not learn the address of this page."""
    return f'<a href="{escape(url)}" target="_blank" rel="noopener noreferrer">{escape(text)}</a>'


def soft(text: str) -> str:
    return f'<span class="mf-soft">{escape(text)}</span>'


def tags_as_text(markdown: str) -> str:
    """Return Markdown whose HTML is displayed as text, not rendered: an answer is not part of the page.

    Images become links, so that reading an answer sends no request anywhere. Code stays as it is, because Markdown
    displays tags in code as text. Where this function and a renderer disagree about what is code, the page's sanitizer
    and its content security policy still hold a tag off.
    """
    pieces: list[str] = []
    prose: list[str] = []
    fence = ""

    def end_prose() -> None:
        pieces.append(_escaped("".join(prose)))
        prose.clear()

    for line in markdown.splitlines(keepends=True):
        fence_line = _FENCE.match(line)
        if fence:
            pieces.append(line)
            closes = fence_line is not None and fence_line[1].startswith(fence) and not line[fence_line.end() :].strip()
            fence = "" if closes else fence
        elif fence_line is not None and not (fence_line[1][0] == "`" and "`" in line[fence_line.end() :]):
            end_prose()
            pieces.append(line)
            fence = fence_line[1]
        else:
            prose.append(line)
    end_prose()
    return "".join(pieces)


def _escaped(prose: str) -> str:
    pieces, end = [], 0
    for code in _CODE.finditer(prose):
        pieces += [_as_text(prose[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _as_text(prose[end:])])


def _as_text(prose: str) -> str:
    return _IMAGE.sub(r"\\!", _TAG.sub("&lt;", prose))
