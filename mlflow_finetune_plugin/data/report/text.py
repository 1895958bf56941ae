"""The data report as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_finetune_plugin.data.report.contents import DataFinding, DataReport, FileReport
from mlflow_finetune_plugin.data.tokens.token_report import TokenReport

_BAR = 40
_SHOWN_LABELS = 8


def report_text(report: DataReport) -> str:
    """Return the report as text: the verdict, the warnings, then the numbers."""
    return "\n".join(_lines(report))


def _lines(report: DataReport) -> Iterator[str]:
    yield f"data   {report.summary()}"
    yield from _warnings(report)
    yield ""
    for file in report.files:
        yield from _file(file)
    yield f"split  {report.eval_split}"
    if report.pictures is not None:
        yield f"images {report.pictures}"
    yield from _lengths("train", report.train)
    yield from _lengths("eval", report.eval)
    yield from _labels(report)
    for finding in report.findings:
        if not finding.is_warning:
            yield from _finding("note ", finding)
    for note in report.notes:
        yield f"note   {note}"
    if report.mask_samples:
        yield "sample training examples (the model learns to write what is in >><<):"
        for sample in report.mask_samples[:2]:
            yield "  " + "".join(
                f">>{part['text']}<<" if part["carries_loss"] else str(part["text"]) for part in sample
            )
    yield f"digest {report.digest} (train), {report.eval_digest} (eval)"


def _warnings(report: DataReport) -> Iterator[str]:
    findings = {str(finding): finding for finding in report.findings}
    for warning in report.warnings:
        if warning in findings:
            yield from _finding("WARN ", findings[warning])
        else:
            yield f"WARN   {warning}"


def _finding(level: str, finding: DataFinding) -> Iterator[str]:
    yield f"{level}  {finding}"
    if finding.example:
        yield f"         {finding.example!r}"


def _file(file: FileReport) -> Iterator[str]:
    yield f"{file.role:<6} {file.name}: {file.layout}; {file.rows_read:,} rows, {file.rows_used:,} kept"
    if file.unused_columns:
        counts = ", ".join(f"{name} ({_rows(rows)})" for name, rows in file.unused_columns.items())
        yield f"       columns that are not used: {counts}"
    for skip in file.skipped:
        lines = ", ".join(map(str, skip.lines[:5])) + (", ..." if skip.rows > 5 else "")
        word = "line" if skip.rows == 1 else "lines"
        detail = f" ({'first: ' if skip.rows > 1 else ''}{skip.detail})" if skip.detail else ""
        yield f"       {skip.rows:,} {skip.reason}{detail}, {word} {lines}"
        if skip.example:
            yield f"         {skip.example}"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _lengths(side: str, tokens: TokenReport) -> Iterator[str]:
    if not tokens.examples:
        return
    yield (
        f"{side:<6} {tokens.examples:,} examples with {tokens.tokens:,} tokens, {tokens.loss_tokens:,} of them trained on; "
        "examples by length in tokens:"
    )
    most = max(count for _, _, count in tokens.length_histogram)
    for low, high, count in tokens.length_histogram:
        yield f"       {f'{low:,}-{high - 1:,}':>14} {'#' * max(1, round(_BAR * count / most)):<{_BAR}} {count:,}"


def _labels(report: DataReport) -> Iterator[str]:
    if report.labels is None or not report.labels.train:
        return
    train = report.labels.train
    listed = train if len(train) <= 2 * _SHOWN_LABELS else (*train[:_SHOWN_LABELS], *train[-_SHOWN_LABELS:])
    yield f"labels {len(train):,} in train: {', '.join(f'{label} {count:,}' for label, count in listed)}"
