"""Render the list of versions, one version, and two side by side as HTML. Every text is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape

from gradio_app.html_parts import empty, link, outcome_html, soft, table_head
from gradio_app.versions.cards import (
    MOST_VERSIONS,
    Bounds,
    GainFigure,
    TrainingRun,
    VersionCard,
    VersionDetails,
    Versions,
)
from gradio_app.versions.loss_chart import Series, loss_chart
from mlflow_finetune_plugin.evaluation.scale import describe_forgetting
from mlflow_finetune_plugin.store.names import CHAMPION

_RUN_GONE = "not known: its run was deleted"


def versions_table(versions: Versions, picked: str | None) -> str:
    """Return the table. Each version's first cell is a button with the number in ``data-version``."""
    if not versions.rows:
        return empty(
            f"{versions.model} has no versions yet.",
            "Train one: mlflow-finetune run PROJECT -e lora registers it here.",
        )
    heads = (
        "Version",
        "Adaptation x objective",
        "Gain over base",
        "Forgetting",
        "Gate",
        "Served",
        "Data",
        "Registered",
    )
    body = "".join(_row(version, version.number == picked) for version in versions.rows)
    more = ""
    if versions.has_more:
        is_all = len(versions.rows) >= MOST_VERSIONS
        remedy = "MLflow's own page lists them" if is_all else "“Show older”"
        more = f'<p class="mf-soft">There are older versions than these {len(versions.rows)}: {remedy}.</p>'
    return (
        f'<div class="mf-scroll"><table class="mf-table">{table_head(heads)}<tbody>{body}</tbody></table></div>{more}'
    )


def card_html(card: VersionDetails) -> str:
    version = card.version
    facts = "".join(_pair(head, value) for head, value in _facts(version))
    chart = loss_chart([Series(curve.name, "a", curve) for curve in card.curves]) if version.run else soft(_RUN_GONE)
    return (
        f'<section class="mf-card" aria-label="Version {version.number}"><h3>Version {version.number} {_aliases(version)}</h3>'
        f'<div class="mf-scroll"><table class="mf-table"><tbody>{facts}</tbody></table></div><h4>On held-out rows</h4>'
        f"{_gain_table([version])}<h4>Loss</h4>{chart}</section>"
    )


def comparison_html(a: VersionDetails, b: VersionDetails) -> str:
    """Return two versions side by side; differences are bold."""
    sides = (a.version, b.version)
    rows = "".join(
        f'<tr><th scope="row">{head}</th>{_cells(first, second)}</tr>'
        for (head, first), (_, second) in zip(_facts(sides[0]), _facts(sides[1]), strict=True)
    )
    names = [f"Version {version.number} {_aliases(version)}" for version in sides]
    head = f'<thead><tr><th scope="col"></th>{"".join(f"<th scope=col>{name}</th>" for name in names)}</tr></thead>'
    series = [
        Series(f"version {card.version.number}, {curve.name}", side, curve)
        for card, side in ((a, "a"), (b, "b"))
        for curve in card.curves
    ]
    same = sides[0].data_digest is not None and sides[0].data_digest == sides[1].data_digest
    caution = (
        ""
        if same
        else soft("The versions were trained on different data, so their gains are on different held-out rows.")
    )
    return (
        f'<section class="mf-card" aria-label="Comparison"><div class="mf-scroll"><table class="mf-table">{head}<tbody>{rows}'
        f"</tbody></table></div><h4>On held-out rows</h4>{_gain_table(sides)}{caution}<h4>Loss</h4>{loss_chart(series)}</section>"
    )


def _row(version: VersionCard, is_picked: bool) -> str:
    marked = ' class="mf-picked" aria-current="true"' if is_picked else ""
    button = f'<button type="button" class="mf-pick" data-version="{version.number}">Version {version.number}</button>'
    first = version.gains[0] if version.gains else None
    gain = f"{escape(first.metric)} {_bounds(first.gain, good=1)}" if first else _absent(version, "not measured")
    facts = dict(_facts(version))
    cells = [
        facts["Adaptation x objective"],
        gain,
        facts["Forgetting"],
        facts["Gate"],
        facts["Served"],
        _data(version, short=True),
    ]
    return (
        f'<tr{marked}><th scope="row">{button}<br>{_aliases(version)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}'
        f"<td>{_when(version.created_ms)}</td></tr>"
    )


def _facts(version: VersionCard) -> list[tuple[str, str]]:
    """Return (name, HTML) pairs in one order for every version."""
    run = version.run
    converted = (
        f"<br>{soft(f'converted from {version.converted_from}: run and figures are of that version')}"
        if version.converted_from
        else ""
    )
    started = f"<br>{soft(f'started from {version.start_from}')}" if version.start_from else ""
    ended = f"{escape(run.status.lower())}" + (f": {escape(run.reason)}" if run.reason else "") if run else ""
    return [
        (
            "Adaptation x objective",
            (escape(version.adaptation_and_objective) if version.adaptation_and_objective else soft("not known"))
            + converted,
        ),
        ("Base", (escape(version.base_model) if version.base_model else soft("not known")) + started),
        ("Data", _data(version)),
        (
            "Forgetting",
            f"{describe_forgetting(version.forgetting.value)}, "
            + _bounds(version.forgetting, good=-1, unit=" nats per token")
            if version.forgetting
            else _absent(version, "not measured"),
        ),
        ("Served", _certificates(version)),
        ("Gate", _verdict(version)),
        ("Training run", f"{_run_id(run)}, {ended}" if run else soft("deleted")),
        (
            "Registered",
            _when(version.created_ms)
            + ("" if version.status == "READY" else f", {escape(version.status.lower())}")
            + (f", {link(version.page_url, 'open in MLflow')}" if version.page_url else ""),
        ),
    ]


def _data(version: VersionCard, *, short: bool = False) -> str:
    run = version.run
    rows = f"{run.train_rows:,} rows" if run is not None and run.train_rows is not None else ""
    if rows and not short and run is not None and run.eval_rows is not None:
        rows += f" to train on, {run.eval_rows:,} held out"
    whole = escape(version.data_digest or "")
    digest = f'<code title="{whole}">{whole[: 8 if short else 16]}</code>' if whole else ""
    return ", ".join(filter(None, (rows, digest))) or soft("not known")


def _certificates(version: VersionCard) -> str:
    if not version.certificates:
        return soft("not served yet")
    return "<br>".join(
        f'<span class="{"mf-is-good" if certificate.passed else "mf-is-bad"}" title="{escape(certificate.text)}">'
        f"{'certified' if certificate.passed else 'failed'}</span> {escape(certificate.engine)} {escape(certificate.precision)}"
        for certificate in version.certificates
    )


def _verdict(version: VersionCard) -> str:
    verdict = version.verdict
    if verdict is None:
        return soft("not judged yet")
    alias = f" for {escape(verdict.alias)}" if verdict.alias not in ("", CHAMPION) else ""
    return outcome_html(verdict.outcome) + alias


def _gain_table(versions: Sequence[VersionCard]) -> str:
    """Return one row for each metric; each of several versions has its own columns."""
    figures = [{gain.metric: gain for gain in version.gains} for version in versions]
    names = list(dict.fromkeys(name for gains in figures for name in gains))
    if not names:
        return _absent(versions[0], "No metrics were logged.")
    is_single = len(versions) == 1
    heads = [
        "Metric",
        *(f"{part}{'' if is_single else f', v{v.number}'}" for v in versions for part in ("Base → adapter", "Gain")),
    ]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(_gain_cells(gains.get(name)) for gains in figures)}</tr>'
        for name in names
    )
    return f'<div class="mf-scroll"><table class="mf-table">{table_head(heads)}<tbody>{rows}</tbody></table></div>'


def _gain_cells(gain: GainFigure | None) -> str:
    if gain is None:
        return f'<td colspan="2">{soft("not measured")}</td>'
    sides = " → ".join("?" if side is None else f"{side:.3g}" for side in (gain.base, gain.adapter))
    return f"<td>{sides}</td><td>{_bounds(gain.gain, good=1)}</td>"


def _bounds(bounds: Bounds, *, good: int, unit: str = "") -> str:
    """Return an estimate, green or red only where the whole interval is on one side of 0; ``good`` is the good sign."""
    low, high = bounds.low, bounds.high
    if low is None or high is None:
        return f"{bounds.value:+.3g}{unit} {soft('no interval')}"
    sure = 1 if low > 0 else -1 if high < 0 else 0
    kind = {good: "mf-is-good", -good: "mf-is-bad"}.get(sure, "")
    return f'<span class="{kind}">{bounds.value:+.3g}</span>{unit} <span class="mf-soft">({low:+.3g} to {high:+.3g})</span>'


def _run_id(run: TrainingRun) -> str:
    """Return the run's id as a link to its page in MLflow, or with a button that copies it where there is no page."""
    if run.page_url is not None:
        return link(run.page_url, run.run_id)
    run_id = escape(run.run_id)
    return f'<code>{run_id}</code> <button type="button" class="mf-copy" data-copy="{run_id}">Copy</button>'


def _aliases(version: VersionCard) -> str:
    return "".join(
        f'<span class="mf-badge{" mf-champion" if alias == CHAMPION else ""}">{escape(alias)}</span>'
        for alias in version.aliases
    )


def _cells(first: str, second: str) -> str:
    return (
        f"<td>{first}</td><td>{second}</td>" if first == second else f"<td><b>{first}</b></td><td><b>{second}</b></td>"
    )


def _pair(head: str, value: str) -> str:
    return f'<tr><th scope="row">{escape(head)}</th><td>{value}</td></tr>'


def _when(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M") + " UTC"


def _absent(version: VersionCard, otherwise: str) -> str:
    return soft(_RUN_GONE if version.run is None else otherwise)
