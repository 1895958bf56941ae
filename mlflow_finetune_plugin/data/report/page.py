"""Render the data report as a single HTML page without network access or scripts, in light and dark colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from mlflow_finetune_plugin.data.report.contents import DataFinding, DataReport, FileReport, SkipCount

_WIDTH, _HEIGHT, _BASE = 760, 180, 150

_ROW, _NAMES = 26, 220

REPORT_STYLE = """
.mf-data { color: var(--ink); font-size: 1rem; line-height: 1.55; }
.mf-data * { box-sizing: border-box; }
.mf-data h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
.mf-data h2 { font-size: 1.15rem; font-weight: 700; margin: 2.6rem 0 .7rem; } .mf-data p { margin: .4rem 0; }
.mf-data .soft, .mf-data figcaption, .mf-data th { color: var(--soft); }
.mf-data .soft, .mf-data figcaption { font-size: .9rem; }
.mf-data code, .mf-data pre { font: .86rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; }
.mf-data pre { white-space: pre-wrap; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  margin: .5rem 0; padding: .7rem .9rem; }
.mf-data .scroll { overflow-x: auto; } .mf-data table { border-collapse: collapse; width: 100%; font-size: .92rem; }
.mf-data th { text-align: left; font-weight: 600; }
.mf-data th, .mf-data td { padding: .4rem .8rem .4rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.mf-data td.n, .mf-data th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.mf-data dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.mf-data dl div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
.mf-data dt { color: var(--soft); font-size: .85rem; }
.mf-data dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.mf-data .warn { background: var(--warn-paper); border-left: 4px solid var(--warn); border-radius: 0 8px 8px 0;
  margin: .5rem 0; padding: .5rem .9rem; }
.mf-data figure { margin: 1rem 0; } .mf-data svg { display: block; max-width: 100%; height: auto; }
.mf-data svg text { fill: var(--soft); font-size: 12px; }
.mf-data svg .train { fill: var(--train); } .mf-data svg .eval { fill: var(--eval); } .mf-data svg .axis { stroke: var(--line); }
.mf-data mark { background: var(--loss-paper); color: inherit; border-bottom: 2px solid var(--loss); }
"""
"""The style of ``report_fragment``. The page sets the colours: --ink --soft --panel --line --train --eval --loss --loss-paper --warn
--warn-paper.
"""
LIGHT = """--ink: #1f2328; --soft: #59636e; --panel: #f6f8fa; --line: #d1d9e0; --train: #0969da; --eval: #bc4c00;
  --loss: #1a7f37; --loss-paper: #dafbe1; --warn: #9a6700; --warn-paper: #fff8c5;"""
DARK = """--ink: #e6edf3; --soft: #9198a1; --panel: #151b23; --line: #3d444d; --train: #4493f8; --eval: #f0883e;
  --loss: #3fb950; --loss-paper: #12361f; --warn: #d29922; --warn-paper: #2f2710;"""
_PAGE_STYLE = f"""
:root {{ color-scheme: light dark; --paper: #ffffff; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #0d1117; {DARK} }} }}
body {{ margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 62rem; background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
{REPORT_STYLE}"""
_LIST = 20


def report_page(report: DataReport, title: str = "Data report") -> str:
    """Return the page as HTML. All texts from the data are escaped."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_PAGE_STYLE}</style></head>\n<body>\n{report_fragment(report, title)}\n</body></html>\n"
    )


def report_fragment(report: DataReport, title: str | None = None) -> str:
    """Return the report for a page that has ``REPORT_STYLE`` and its colours. With ``title`` None it has no heading."""
    heading = f"<h1>{escape(title)}</h1>" if title is not None else ""
    sections = [
        f"{heading}<p>{escape(report.summary())}</p>",
        _figures(report),
        _warnings(report),
        _files(report.files),
        _pictures(report),
        _lengths(report),
        _labels(report),
        _findings(report.findings),
        _skipped(report.files),
        _samples(report),
        _footer(report),
    ]
    return f'<article class="mf-data">\n{chr(10).join(filter(None, sections))}\n</article>'


def _figures(report: DataReport) -> str:
    tokens = report.train.tokens + report.eval.tokens
    loss = report.train.loss_tokens + report.eval.loss_tokens
    figures = {
        "rows to train on": f"{report.train_rows:,}",
        **({"validation rows": f"{report.validation_rows:,}"} if report.validation_rows else {}),
        "held-out rows": f"{report.eval_rows:,}",
        "skipped": f"{report.skipped:,}",
        "tokens": f"{tokens:,}",
        "tokens trained on": f"{100 * loss / tokens:.0f} %" if tokens else "0 %",
        "longest": f"{max(report.train.length_quantiles['max'], report.eval.length_quantiles['max']):,} of {report.max_length:,}",
    }
    return "<dl>" + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures.items()) + "</dl>"


def _warnings(report: DataReport) -> str:
    paragraphs = "".join(f'<p class="warn">{escape(warning)}</p>' for warning in report.warnings)
    notes = "".join(f'<p class="soft">{escape(note)}</p>' for note in report.notes)
    return f"<h2>Warnings and notes</h2>{paragraphs}{notes}" if paragraphs or notes else ""


def _files(files: Sequence[FileReport]) -> str:
    rows = [
        [
            file.name,
            file.role,
            file.task,
            file.layout,
            _n(file.rows_read),
            _n(file.rows_used),
            _n(_skips(file)),
            f"{file.weight:g}",
        ]
        for file in files
    ]
    heads = ["file", "side", "task", "layout", "#rows", "#kept", "#skipped", "#weight"]
    return "<h2>Files</h2>" + _table(heads, rows) + "".join(map(_unused_columns, files))


def _unused_columns(file: FileReport) -> str:
    if not file.unused_columns:
        return ""
    counts = ", ".join(f"<code>{escape(name)}</code> ({_n(rows)})" for name, rows in file.unused_columns.items())
    return f'<p class="soft">Columns of {escape(file.name)} that are not used, with the number of rows that have a value: {counts}</p>'


def _pictures(report: DataReport) -> str:
    return f"<h2>Pictures</h2><p>{escape(str(report.pictures))}</p>" if report.pictures is not None else ""


def _lengths(report: DataReport) -> str:
    parts = []
    for side, tokens in (("train", report.train), ("eval", report.eval)):
        if tokens.examples:
            bins = [(f"{low:,}", count) for low, _, count in tokens.length_histogram]
            quantiles = ", ".join(f"{name} {value:,}" for name, value in tokens.length_quantiles.items())
            caption = f"{side}: {tokens.examples:,} examples by length; each column starts at the number of tokens below it; {quantiles}"
            parts.append(
                f"<figure>{columns(bins, side, f'lengths of {side} examples')}<figcaption>{caption}</figcaption></figure>"
            )
    return "<h2>Lengths</h2>" + "".join(parts)


def _labels(report: DataReport) -> str:
    if report.labels is None:
        return ""
    train, held_out = dict(report.labels.train), dict(report.labels.eval)
    names = list(dict.fromkeys((*train, *held_out)))
    listed = names if len(names) <= 2 * _LIST else [*names[:_LIST], *names[-_LIST:]]
    picture = bars([(name, train.get(name, 0), held_out.get(name, 0)) for name in listed])
    left_out = f" (the {_LIST} most and the {_LIST} least frequent)" if len(listed) < len(names) else ""
    caption = f"{len(names):,} labels{left_out}; for each the upper bar shows rows in train, the lower bar rows in eval"
    return f"<h2>Labels</h2><figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _findings(findings: Sequence[DataFinding]) -> str:
    rows = [[f.check, _n(f.count), ", ".join(f.places) or "-", f"`{f.example}", f.fix] for f in findings]
    return "<h2>Checks</h2>" + (
        _table(["check", "#count", "where", "example", "fix"], rows) if rows else "<p>No findings.</p>"
    )


def _skipped(files: Sequence[FileReport]) -> str:
    rows = [
        [file.name, skip.reason, _n(skip.rows), _lines(skip), skip.detail, f"`{skip.example}"]
        for file in files
        for skip in file.skipped
    ]
    return (
        "<h2>Rows left out</h2>" + _table(["file", "reason", "#rows", "lines", "detail", "example"], rows)
        if rows
        else ""
    )


def _samples(report: DataReport) -> str:
    def colour(segments: Iterable[dict[str, object]]) -> str:
        pieces = ((escape(str(piece["text"])), piece["carries_loss"]) for piece in segments)
        return "".join(f"<mark>{text}</mark>" if carries_loss else text for text, carries_loss in pieces)

    samples = "".join(f"<pre>{colour(sample)}</pre>" for sample in report.mask_samples)
    caption = '<p class="soft">The tokens that the model reads, as text. The model learns to write the <mark>marked</mark> ones.</p>'
    return f"<h2>Sample training examples</h2>{caption}{samples}" if samples else ""


def _footer(report: DataReport) -> str:
    facts = {
        "split": report.eval_split,
        "template": f"{report.template_source}, {report.template_digest[:12]}",
        "end of turn": report.end_of_turn_token,
        "over length": f"{report.over_length:,} rows, {report.overlength}; {report.truncated:,} examples truncated",
        "digest of train": report.digest,
        "digest of eval": report.eval_digest,
    }
    return "<h2>Split, template and digests</h2>" + _table(
        ["", ""], [[name, f"`{value}"] for name, value in facts.items()]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table. A head that starts with # marks a column of numbers, a cell that starts with ` is shown as code."""
    kinds = [' class="n"' if head.startswith("#") else "" for head in heads]
    head = "".join(
        f'<th{kind} scope="col">{escape(name.removeprefix("#"))}</th>' for name, kind in zip(heads, kinds, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if any(heads) else ""
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<code>{escape(text[1:])}</code>" if text.startswith("`") else escape(text)


def _lines(skip: SkipCount) -> str:
    return ", ".join(map(str, skip.lines)) + (", ..." if skip.rows > len(skip.lines) else "")


def _skips(file: FileReport) -> int:
    return sum(skip.rows for skip in file.skipped)


def _n(number: int) -> str:
    return f"{number:,}"


def columns(bins: Sequence[tuple[str, int]], kind: str, name: str) -> str:
    """Return a histogram as SVG, one column per (label, count)."""
    top, width = max(count for _, count in bins), min(80.0, _WIDTH / len(bins))
    drawn = []
    for i, (label, count) in enumerate(bins):
        height, x = (_BASE - 24) * count / top, i * width
        drawn.append(
            f'<rect class="{kind}" x="{x + 2:.1f}" y="{_BASE - height:.1f}" width="{width - 4:.1f}" height="{height:.1f}"/>'
            f'<text x="{x + width / 2:.1f}" y="{_BASE - height - 5:.1f}" text-anchor="middle">{count:,}</text>'
            f'<text x="{x + 2:.1f}" y="{_BASE + 18}">{escape(label)}</text>'
        )
    axis = f'<line class="axis" x1="0" y1="{_BASE}" x2="{_WIDTH}" y2="{_BASE}"/>'
    return _svg(_HEIGHT, name, axis + "".join(drawn))


def bars(rows: Sequence[tuple[str, int, int]]) -> str:
    """Return two bars per (label, train, eval) as SVG, each side on its own scale."""
    most = [max([1, *(row[1] for row in rows)]), max([1, *(row[2] for row in rows)])]
    room = _WIDTH - _NAMES - 70
    drawn = []
    for i, (label, *both) in enumerate(rows):
        counts = [int(count) for count in both]
        y = i * _ROW
        short = label if len(label) <= 30 else label[:29] + "…"
        drawn.append(
            f'<text x="{_NAMES - 10}" y="{y + 16}" text-anchor="end">{escape(short)}<title>{escape(label)}</title></text>'
        )
        for side, kind in enumerate(("train", "eval")):
            length = room * counts[side] / most[side]
            top, height = (y + 3, 11) if side == 0 else (y + 15, 5)
            drawn.append(f'<rect class="{kind}" x="{_NAMES}" y="{top}" width="{length:.1f}" height="{height}"/>')
        drawn.append(
            f'<text x="{_NAMES + room * counts[0] / most[0] + 6:.1f}" y="{y + 14}">{counts[0]:,} / {counts[1]:,}</text>'
        )
    return _svg(len(rows) * _ROW + 4, "rows per label", "".join(drawn))


def _svg(height: int, name: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" aria-label="{escape(name)}">{inside}</svg>'
