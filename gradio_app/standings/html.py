"""Render standings as HTML: a sentence first, numbers in tables, every text escaped.

``style.css`` styles the classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from html import escape

from gradio_app.standings.charts import ForestRow, PathLabels, Scale, forest_plot, path_plot
from gradio_app.standings.standings import PairStanding, Standings, VoteGroup
from gradio_app.standings.vote_path import version_name
from mlflow_finetune_plugin.evaluation.results import Interval
from mlflow_finetune_plugin.gate.statistics.ranking import Ranking
from mlflow_finetune_plugin.votes.checks import Bias, Summary

NO_VOTES = (
    '<div class="mf-empty"><h3>No votes yet</h3><p>Ask something under <b>Compare</b>, read both answers and vote for the '
    "better one. What people prefer appears here a few seconds after the first vote. By default the gate reads these votes: a "
    "version that people are shown to like less is not promoted.</p></div>"
)
NONE_COUNTS = (
    '<div class="mf-empty"><h3>No vote counts yet</h3><p>A vote counts when both answers carry the receipt of a registered '
    "version, and of two different ones. The reasons why the votes so far do not count are listed below.</p></div>"
)
_WHY_HIDDEN = (
    "The result is shown once it is decided, so that no vote follows the votes of others. "
    "<code>mlflow-finetune votes</code> prints it, and a playground that was started with <code>--live-standings</code> "
    "shows it."
)
READING = '<div class="mf-empty"><h3>Reading the votes …</h3><p>They are in MLflow; the first reading takes longest.</p></div>'


def state_html(model: str, standings: Standings | None, read_at: datetime | None, fault: str | None) -> str:
    """Return the line above the standings: their time, and what is wrong.

    Its clock changes, so it is not a live region.
    """
    line = ""
    if standings is not None:
        uncounted = standings.votes - standings.counted
        line = f"{_count(standings.votes, 'vote')} on <b>{escape(model)}</b>"
        line += f", {uncounted:,} of them not counted" if uncounted else ""
    if read_at is not None:
        clock = f'<time datetime="{read_at.isoformat()}">{read_at:%H:%M:%S} UTC</time>'
        line += f"; as of {clock}" if fault is None else f"; the standings below are of {clock}"
    if fault is None:
        return f'<p class="mf-state">{line}</p>'
    return (
        f'<div class="mf-fault" role="alert"><b>The votes cannot be read right now.</b> {escape(fault)}'
        f"<br/>New votes are kept on this host, and this page updates when MLflow answers again.</div>"
        f'<p class="mf-state">{line}</p>'
    )


def pair_html(standing: PairStanding) -> str:
    """Return one pair of versions: the state in words, the counts, and the numbers behind both in closed parts."""
    if standing.is_hidden:
        return f'<p class="mf-sentence mf-open">{escape(hidden_sentence(standing))}</p><p class="mf-note">{_WHY_HIDDEN}</p>'
    outcome = {"better": "mf-good", "worse": "mf-bad", "undecided": "mf-open"}[standing.path.test.outcome]
    rows = _trust_rows(standing)
    warnings = sum(is_suspect for *_, is_suspect in rows)
    question = "Can these votes be trusted?" + (f" {_count(warnings, 'warning')}" if warnings else "")
    return (
        f'<p class="mf-sentence {outcome}">{escape(headline(standing))}</p>{_tiles(standing.people)}'
        f"{_part('standings-numbers', 'The numbers: intervals, groups and evidence', _numbers(standing))}"
        f"{_part('standings-trust', question, _trust_table(rows))}"
    )


def hidden_sentence(standing: PairStanding) -> str:
    """Return how many votes there are on a pair whose result is hidden."""
    people = standing.people
    if not people.votes:
        return "Undecided: no person has voted on this pair yet."
    voters = "1 person" if people.voters == 1 else f"{people.voters:,} people"
    return f"Undecided: {_count(people.votes, 'vote')} of {voters} so far."


def headline(standing: PairStanding) -> str:
    """Return what people prefer and what a decision still needs, for a reader who knows no statistics."""
    people, path = standing.people, standing.path
    decisive = people.candidate_wins + people.champion_wins
    if not decisive:
        return path.sentence
    wins = max(people.candidate_wins, people.champion_wins)
    preferred = people.candidate if people.candidate_wins >= people.champion_wins else people.champion
    name = "each version" if 2 * wins == decisive else version_name(preferred)
    share = f"{wins:,} of {_count(decisive, 'vote')} {'prefers' if wins == 1 else 'prefer'} {name}"
    if path.test.outcome != "undecided":
        return f"{path.sentence} {share}."
    capped = decisive - path.scores if path.policy.unit == "vote" else 0
    cap = f" Of each voter the first {path.policy.per_voter} votes count, so {capped:,} do not." if capped > 0 else ""
    return f"{share}; {path.outlook}.{cap}"


def overview_html(standings: Standings) -> str:
    """Return every pair, and the ranking of three versions or more; nothing where there is one pair alone."""
    parts = []
    if standings.ranking is not None:
        parts.append(_ranking_html(standings.ranking))
    if len(standings.pairs) > 1:
        rows = [
            ForestRow(f"{each.pair[0]} vs {each.pair[1]}", None, hidden_sentence(each))
            if each.is_hidden
            else ForestRow(f"{each.pair[0]} vs {each.pair[1]}", each.people.win_rate, _share_of(each.people))
            for each in standings.pairs
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
        "<details class='mf-details' id='standings-uncounted'><summary>Votes that do not count</summary><div class='mf-scroll'>"
        '<table class="mf-table"><thead><tr><th scope="col">why</th><th scope="col">votes</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


# one pair ---------------------------------------------------------------------------------------------------------


def _tiles(people: Summary) -> str:
    counts = [
        (f"{version_name(people.candidate)} preferred", people.candidate_wins, "mf-a"),
        (f"{version_name(people.champion)} preferred", people.champion_wins, "mf-b"),
        ("tie", people.ties, ""),
        ("both bad", people.both_bad, ""),
        ("people" if people.voters != 1 else "person", people.voters, ""),
    ]
    tiles = "".join(
        f'<div class="mf-tile {name}"><dt>{escape(label)}</dt><dd>{number:,}</dd></div>'
        for label, number, name in counts
    )
    return f'<dl class="mf-tiles">{tiles}</dl>'


def _part(name: str, title: str, html: str) -> str:
    """Return a part that the reader opens.

    The page's script keeps it open, by its id, when new standings replace it.
    """
    return f'<details class="mf-details" id="{name}"><summary>{escape(title)}</summary>{html}</details>'


def _numbers(standing: PairStanding) -> str:
    candidate, champion = (version_name(version) for version in standing.pair)
    path = standing.path
    caption = f"How often {candidate} is preferred to {champion}, of votes that prefer one (95 % intervals)"
    parts = [forest_plot(_forest_rows(standing), caption=caption)]
    if path.scores:
        steps = "voters" if path.policy.unit == "voter" else "decisive votes"
        plot = path_plot(
            path.test.evidence_for,
            path.test.evidence_against,
            boundary=path.test.boundary,
            minimum=path.policy.minimum,
            labels=PathLabels(candidate, champion, steps),
        )
        parts += [f"<h3>Evidence after each of the {steps}</h3><p>{escape(path.sentence)}</p>", plot]
    parts += [f'<p class="mf-note">{escape(note)}</p>' for note in _path_notes(standing)]
    return "".join(parts)


def _forest_rows(standing: PairStanding) -> list[ForestRow]:
    rows = [ForestRow("people", standing.people.win_rate, _share_of(standing.people))]
    rows += _headed(
        "Judges (language models), not counted among people",
        (ForestRow(judge.voter, judge.summary.win_rate, _share_of(judge.summary)) for judge in standing.judges),
    )
    if any(group.name for group in standing.prompt_sets):
        rows += _headed(
            "By prompt set", (_group_row(group, group.name or "typed by people") for group in standing.prompt_sets)
        )
    rows += _headed("By reason", (_group_row(group, group.name) for group in standing.tags))
    return rows


def _headed(heading: str, rows: Iterable[ForestRow]) -> list[ForestRow]:
    return [ForestRow(row.label, row.interval, row.text, heading if i == 0 else "") for i, row in enumerate(rows)]


def _group_row(group: VoteGroup, label: str) -> ForestRow:
    return ForestRow(label, group.win_rate, _share(group.win_rate, group.candidate_wins + group.champion_wins))


def _share_of(summary: Summary) -> str:
    return _share(summary.win_rate, summary.candidate_wins + summary.champion_wins)


def _share(rate: Interval | None, decisive: int) -> str:
    if rate is None:
        return "no vote prefers a version"
    return f"{rate.value:.0%} of {decisive:,} ({rate.low:.0%} to {rate.high:.0%})"


def _path_notes(standing: PairStanding) -> list[str]:
    path, notes = standing.path, []
    if standing.terms_note:
        who = version_name(standing.pair[0])
        notes.append(f"{who[0].upper()}{who[1:]}: {standing.terms_note}. The path is drawn by the default terms.")
    if path.pair_number > 1:
        notes.append(
            f"This is pair number {path.pair_number} that the gate tests by votes. All pairs share one chance of error, so "
            "each further pair needs more evidence, and less after every version that was shown to be better."
        )
    return notes + path.notes


def _trust_rows(standing: PairStanding) -> list[tuple[str, str, bool]]:
    """Return (name, text, whether it is suspect) of everything that may make votes misleading."""
    people, agreed = standing.people, standing.agreement
    rows = [("people agree", _agreement(standing), agreed.alpha is not None and agreed.alpha < 0)]
    rows.append(("left answer won", *_bias(people.left, "voters may prefer a position, not an answer")))
    better = "shorter" if people.longer is not None and people.longer.share.value < 0.5 else "longer"
    rows.append(
        ("longer answer won", *_bias(people.longer, f"voters may prefer a length, or the better answers are {better}"))
    )
    if people.votes:
        most = f"{people.most_votes:,} of {people.votes:,} votes ({people.most_share:.0%})"
        outweighs = "; more than all others together" if people.is_flooded else ""
        rows.append(("most active person", most + outweighs, people.is_flooded))
    rows += [
        (f"{judge.voter} agrees", f"with most people on {judge.agreed} of {_count(judge.shared, 'turn')}", False)
        for judge in standing.judges
        if judge.shared
    ]
    return rows


def _trust_table(rows: Iterable[tuple[str, str, bool]]) -> str:
    body = "".join(
        f'<tr class="{"mf-warns" if is_suspect else "mf-fine"}"><th scope="row">{escape(name)}</th>'
        f"<td>{escape(text)}</td></tr>"
        for name, text, is_suspect in rows
    )
    return f'<div class="mf-scroll"><table class="mf-table"><tbody>{body}</tbody></table></div>'


def _agreement(standing: PairStanding) -> str:
    agreed = standing.agreement
    if not agreed.pairs:
        return "not known: two people have not judged the same prompt"
    text = (
        f"{agreed.agreeing:,} of {_count(agreed.pairs, 'pair')} of votes on {_count(agreed.prompts, 'shared prompt')}"
    )
    if agreed.alpha is None:
        return f"{text}; all votes are the same, so agreement by chance cannot be excluded"
    return f"{text}; Krippendorff's alpha {agreed.alpha:.2f} (1 is perfect, 0 is chance)"


def _bias(bias: Bias | None, meaning: str) -> tuple[str, bool]:
    if bias is None:
        return "nothing to compare", False
    text = f"{bias.wins:,} of {bias.votes:,}: {bias.share.value:.0%} ({bias.share.low:.0%} to {bias.share.high:.0%})"
    return (f"{text}; suspect (p = {bias.p:.2g}): {meaning}", True) if bias.is_suspect else (text, False)


# several pairs ----------------------------------------------------------------------------------------------------


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
