"""The data report for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_finetune_plugin.data.report.contents import DataReport
from mlflow_finetune_plugin.data.tokens.token_report import TokenReport

_BAR = 40
_SHOWN_LABELS = 8


def report_text(report: DataReport) -> str:
    """All of the report but the digests of its parts, as lines."""
    return "\n".join(_lines(report))


def _lines(report: DataReport) -> Iterator[str]:
    yield report.summary()
    yield ""
    for file in report.files:
        yield f"{file.role:<6} {file.name}: {file.layout}; {file.rows_read:,} rows, {file.kept:,} kept"
        for skip in file.skipped:
            lines = ", ".join(map(str, skip.lines[:5])) + (", ..." if skip.rows > 5 else "")
            yield f"       {skip.rows:,} {skip.reason}{f' ({skip.detail})' if skip.detail else ''}, line {lines}"
            if skip.example:
                yield f"         {skip.example}"
    yield f"split  {report.eval_split}"
    yield from _lengths("train", report.train)
    yield from _lengths("eval", report.eval)
    yield from _labels(report)
    for finding in report.findings:
        yield f"{'WARN ' if finding.is_warning else 'note '}  {finding}"
        if finding.example:
            yield f"         {finding.example!r}"
    said = {str(finding) for finding in report.findings}
    for warning in report.warnings:
        if warning not in said:
            yield f"WARN   {warning}"
    for note in report.notes:
        yield f"note   {note}"
    if report.mask_samples:
        yield "learnt (what carries loss is in >><<):"
        for sample in report.mask_samples[:2]:
            yield "  " + "".join(
                f">>{part['text']}<<" if part["carries_loss"] else str(part["text"]) for part in sample
            )
    yield f"digest {report.digest} (train), {report.eval_digest} (eval)"


def _lengths(side: str, tokens: TokenReport) -> Iterator[str]:
    if not tokens.examples:
        return
    yield f"{side:<6} {tokens.examples:,} examples of {tokens.tokens:,} tokens, {tokens.loss_tokens:,} with loss; lengths:"
    most = max(count for _, _, count in tokens.length_histogram)
    for low, high, count in tokens.length_histogram:
        yield f"       {f'{low:,}-{high - 1:,}':>14} {'#' * max(1, round(_BAR * count / most)):<{_BAR}} {count:,}"


def _labels(report: DataReport) -> Iterator[str]:
    if report.labels is None or not report.labels.train:
        return
    train = report.labels.train
    shown = train if len(train) <= 2 * _SHOWN_LABELS else (*train[:_SHOWN_LABELS], *train[-_SHOWN_LABELS:])
    yield f"labels {len(train):,} in train: {', '.join(f'{label} {count:,}' for label, count in shown)}"
