"""Standings as HTML: every text escaped, numbers in tables, a sentence first. Pure; its classes are styled by the page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from html import escape

from gradio_app.standings.charts import ForestRow, PathLabels, Scale, forest_plot, path_plot
from gradio_app.standings.standings import Group, PairStanding, Standings
from gradio_app.standings.vote_path import version_name
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.ranking import Ranking
from mlflow_finetune_plugin.votes.checks import Bias, Summary

NO_VOTES = (
    '<div class="mf-empty"><h3>No votes yet</h3><p>Ask something under <b>Compare</b>, read both answers and vote for the '
    "better one. What people prefer appears here a few seconds after the first vote.</p></div>"
)
NONE_COUNTS = (
    '<div class="mf-empty"><h3>No vote counts yet</h3><p>A vote counts when both answers carry the receipt of a registered '
    "version, and of two different ones. Why those cast so far do not is told below.</p></div>"
)
READING = (
    '<div class="mf-empty"><h3>Reading the votes …</h3><p>They are in MLflow; the first look takes longest.</p></div>'
)


def state_html(model: str, standings: Standings | None, read_at: datetime | None, fault: str | None) -> str:
    """One line above all: of when the picture is, and what is wrong. Its clock moves, so it is no live region."""
    told = ""
    if standings is not None:
        uncounted = standings.votes - standings.counted
        told = f"{_count(standings.votes, 'vote')} on <b>{escape(model)}</b>"
        told += f", {uncounted:,} of them not counted" if uncounted else ""
    if read_at is not None:
        clock = f'<time datetime="{read_at.isoformat()}">{read_at:%H:%M:%S} UTC</time>'
        told += f"; as of {clock}" if fault is None else f"; the picture below is of {clock}"
    if fault is None:
        return f'<p class="mf-state">{told}</p>'
    return (
        f'<div class="mf-fault" role="alert"><b>The votes cannot be read right now.</b> {escape(fault)}'
        f"<br/>Votes cast meanwhile are kept on this host; this page goes on by itself.</div>"
        f'<p class="mf-state">{told}</p>'
    )


def pair_html(standing: PairStanding) -> str:
    """All that is known of one pair of versions."""
    candidate, champion = (version_name(version) for version in standing.pair)
    path = standing.path
    outcome = {"better": "mf-good", "worse": "mf-bad", "undecided": "mf-open"}[path.outcome]
    parts = [f'<p class="mf-sentence {outcome}">{escape(path.sentence)}</p>', _tiles(standing.people)]
    caption = f"How often {candidate} is preferred to {champion}, of votes that prefer one (95 % intervals)"
    parts.append(forest_plot(_forest_rows(standing), caption=caption))
    if path.scores:
        steps = "voters" if path.unit == "voter" else "decisive votes"
        parts.append("<h3>On the way to a decision</h3>")
        parts.append(
            path_plot(
                path.evidence_for,
                path.evidence_against,
                boundary=path.boundary,
                minimum=path.minimum,
                labels=PathLabels(candidate, champion, steps),
            )
        )
    parts += [f'<p class="mf-note">{escape(note)}</p>' for note in _path_notes(standing)]
    parts += ["<h3>Can these votes be believed?</h3>", _belief(standing)]
    return "".join(parts)


def overview_html(standings: Standings) -> str:
    """Every pair, and the ranking where there are three versions or more; nothing where one pair is all there is."""
    parts = []
    if standings.ranking is not None:
        parts.append(_ranking_html(standings.ranking))
    if len(standings.pairs) > 1:
        rows = [
            ForestRow(f"{one.pair[0]} vs {one.pair[1]}", one.people.win_rate, _share_of(one.people))
            for one in standings.pairs
        ]
        parts.append("<h3>Every pair</h3>")
        parts.append(forest_plot(rows, caption="How often the first is preferred to the second, by people"))
    return "".join(parts)


def not_counted_html(standings: Standings) -> str:
    if not standings.not_counted:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(reason)}</th><td>{votes:,}</td></tr>'
        for reason, votes in standings.not_counted.items()
    )
    return (
        "<details class='mf-details'><summary>Votes that do not count</summary><div class='mf-scroll'>"
        '<table class="mf-table"><thead><tr><th scope="col">why</th><th scope="col">votes</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


# one pair --------------------------------------------------------------------------------------------------------------


def _tiles(people: Summary) -> str:
    told = [
        (f"{version_name(people.candidate)} preferred", people.candidate_wins, "mf-a"),
        (f"{version_name(people.champion)} preferred", people.champion_wins, "mf-b"),
        ("tie", people.ties, ""),
        ("both bad", people.both_bad, ""),
        ("people" if people.voters != 1 else "person", people.voters, ""),
    ]
    tiles = "".join(
        f'<div class="mf-tile {name}"><dt>{escape(label)}</dt><dd>{number:,}</dd></div>' for label, number, name in told
    )
    return f'<dl class="mf-tiles">{tiles}</dl>'


def _forest_rows(standing: PairStanding) -> list[ForestRow]:
    rows = [ForestRow("people", standing.people.win_rate, _share_of(standing.people))]
    rows += _headed(
        "Models that judge, not counted among people",
        (ForestRow(judge.voter, judge.summary.win_rate, _share_of(judge.summary)) for judge in standing.judges),
    )
    if any(group.name for group in standing.prompt_sets):
        rows += _headed(
            "By prompt set", (_group_row(group, group.name or "typed by people") for group in standing.prompt_sets)
        )
    rows += _headed("By reason given", (_group_row(group, group.name) for group in standing.tags))
    return rows


def _headed(heading: str, rows: Iterable[ForestRow]) -> list[ForestRow]:
    return [ForestRow(row.label, row.interval, row.told, heading if i == 0 else "") for i, row in enumerate(rows)]


def _group_row(group: Group, label: str) -> ForestRow:
    return ForestRow(label, group.win_rate, _share(group.win_rate, group.candidate_wins + group.champion_wins))


def _share_of(summary: Summary) -> str:
    return _share(summary.win_rate, summary.candidate_wins + summary.champion_wins)


def _share(rate: Interval | None, decisive: int) -> str:
    if rate is None:
        return "no vote prefers one"
    return f"{rate.value:.0%} of {decisive:,} ({rate.low:.0%} to {rate.high:.0%})"


def _path_notes(standing: PairStanding) -> list[str]:
    path, notes = standing.path, []
    if standing.terms_note:
        who = version_name(standing.pair[0])
        notes.append(f"{who[0].upper()}{who[1:]}: {standing.terms_note}. The path is drawn by the default terms.")
    if path.pair_number > 1:
        notes.append(
            f"This is pair number {path.pair_number} that people voted on. All pairs share one chance of error, so each "
            "further one needs more evidence."
        )
    if path.waiting and path.scores:
        notes.append(f"{path.waiting_for}.")
    return notes


def _belief(standing: PairStanding) -> str:
    people, agreed = standing.people, standing.agreement
    rows = [("people agree", _agreement(standing), agreed.alpha is not None and agreed.alpha < 0)]
    rows.append(("left answer won", *_bias(people.left, "votes may prefer a place, not an answer")))
    better = "shorter" if people.longer is not None and people.longer.share.value < 0.5 else "longer"
    rows.append(
        ("longer answer won", *_bias(people.longer, f"votes may go by length, or the better ones are {better}"))
    )
    if people.votes:
        most = f"{people.most_votes:,} of {people.votes:,} votes ({people.most_share:.0%})"
        rows.append(
            ("most active person", most + ("; outweighs all others" if people.is_flooded else ""), people.is_flooded)
        )
    rows += [
        (f"{judge.voter} agrees", f"with most people on {judge.agreed} of {_count(judge.shared, 'turn')}", False)
        for judge in standing.judges
        if judge.shared
    ]
    body = "".join(
        f'<tr class="{mark}"><th scope="row">{escape(name)}</th><td>{escape(told)}</td></tr>'
        for name, told, mark in ((name, told, "mf-warns" if warns else "mf-fine") for name, told, warns in rows)
    )
    return f'<div class="mf-scroll"><table class="mf-table"><tbody>{body}</tbody></table></div>'


def _agreement(standing: PairStanding) -> str:
    agreed = standing.agreement
    if not agreed.pairs:
        return "not known: no prompt was judged by two people"
    told = (
        f"{agreed.agreeing:,} of {_count(agreed.pairs, 'pair')} of votes on {_count(agreed.prompts, 'shared prompt')}"
    )
    if agreed.alpha is None:
        return f"{told}; all said the same, so chance cannot be told apart"
    return f"{told}; Krippendorff's alpha {agreed.alpha:.2f} (1 is perfect, 0 is chance)"


def _bias(bias: Bias | None, meaning: str) -> tuple[str, bool]:
    if bias is None:
        return "nothing to compare", False
    told = f"{bias.wins:,} of {bias.votes:,}: {bias.share.value:.0%} ({bias.share.low:.0%} to {bias.share.high:.0%})"
    return (f"{told}; suspect (p = {bias.p:.2g}): {meaning}", True) if bias.is_suspect else (told, False)


# several ---------------------------------------------------------------------------------------------------------------


def _ranking_html(ranking: Ranking) -> str:
    ends = [
        abs(end)
        for model in ranking.models
        for end in (model.strength.low, model.strength.value, model.strength.high)
        if math.isfinite(end)
    ]
    widest = max([0.5, *ends])
    scale = Scale(-widest, 0.0, widest, (f"-{widest:.1f}", "average", f"+{widest:.1f}"))
    rows = [
        ForestRow(
            version_name(model.name),
            model.strength,
            f"{model.strength.value:+.2f}; {model.points:g} points of {model.comparisons:,}",
        )
        for model in ranking.models
    ]
    notes = "".join(f'<p class="mf-note">{escape(note)}</p>' for note in ranking.notes)
    caption = "Strength in log odds against the average version (Bradley-Terry, 95 % intervals over people)"
    return f"<h3>Ranking</h3>{forest_plot(rows, caption=caption, scale=scale)}{notes}"


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"
