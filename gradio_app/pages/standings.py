"""The tab Standings: what the votes say by now, while somebody looks."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from gradio_app.standings.feed import OpenTurns, StandingsFeed
from gradio_app.standings.html import (
    NO_VOTES,
    NONE_COUNTS,
    READING,
    not_counted_html,
    overview_html,
    pair_html,
    state_html,
)
from gradio_app.standings.json import standings_json
from gradio_app.standings.standings import Pair, Standings
from gradio_app.standings.vote_path import version_name

INTERVAL_S = 5.0

CSS = """
.mf-standings { color: var(--body-text-color); }
.mf-standings h3 { margin: 1.5rem 0 .5rem; font-size: 1.05rem; }
.mf-standings .mf-scroll { overflow-x: auto; }
.mf-state, .mf-note { color: var(--body-text-color-subdued); font-size: .875rem; margin: .25rem 0; }
.mf-standings .mf-state * { color: inherit; }
.mf-state { min-height: 1.4em; font-variant-numeric: tabular-nums; }
.mf-empty { padding: 2.5rem 1rem; text-align: center; border: 1px dashed var(--border-color-primary); border-radius: 8px; }
.mf-empty h3 { margin: 0 0 .5rem; }
.mf-fault { padding: .75rem 1rem; border-left: 4px solid var(--mf-warn); background: var(--background-fill-secondary);
  border-radius: 4px; overflow-wrap: anywhere; }
.mf-sentence { font-size: 1.15rem; line-height: 1.45; padding: .75rem 1rem; margin: .5rem 0 1rem; border-radius: 4px;
  border-left: 4px solid var(--body-text-color-subdued); background: var(--background-fill-secondary); }
.mf-sentence.mf-good { border-color: var(--mf-good); }
.mf-sentence.mf-bad { border-color: var(--mf-bad); }
.mf-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .5rem; margin: 0 0 1rem; }
.mf-tile { border: 1px solid var(--border-color-primary); border-top: 3px solid var(--border-color-primary);
  border-radius: 6px; padding: .5rem .75rem; display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.mf-tile.mf-a { border-top-color: var(--mf-a); }
.mf-tile.mf-b { border-top-color: var(--mf-b); }
.mf-tile dt { color: var(--body-text-color-subdued); font-size: .8rem; }
.mf-tile dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.mf-standings table { width: 100%; border-collapse: collapse; border: 0; margin: 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
.mf-standings tr, .mf-standings th, .mf-standings td { border: 0; text-align: left; padding: .3rem .4rem; background: none; }
.mf-standings caption { text-align: left; color: var(--body-text-color-subdued); font-size: .875rem; padding-bottom: .35rem; }
.mf-standings .mf-forest { table-layout: fixed; }
.mf-forest th { font-weight: 500; overflow-wrap: anywhere; }
.mf-standings .mf-forest th[colspan] { font-weight: 600; padding-top: .9rem; }
.mf-forest tr > :first-child:not([colspan]) { width: 25%; }
.mf-forest tr > :last-child:not([colspan]) { width: 34%; }
.mf-forest svg { display: block; overflow: visible; }
.mf-marks { display: flex; justify-content: space-between; color: var(--body-text-color-subdued); font-size: .75rem; }
.mf-standings .mf-table { width: auto; }
.mf-standings .mf-table th { font-weight: 500; color: var(--body-text-color-subdued); vertical-align: top; }
.mf-standings .mf-table tr + tr > * { border-top: 1px solid var(--border-color-primary); }
.mf-standings .mf-warns td { border-left: 3px solid var(--mf-warn); }
.mf-middle { stroke: var(--border-color-primary); stroke-width: 1.5; }
.mf-bar { stroke: var(--body-text-color-subdued); stroke-width: 3; stroke-linecap: round; }
.mf-dot { fill: var(--body-text-color-subdued); }
.mf-ahead .mf-bar { stroke: var(--mf-a); }
.mf-ahead .mf-dot { fill: var(--mf-a); }
.mf-behind .mf-bar { stroke: var(--mf-b); }
.mf-behind .mf-dot { fill: var(--mf-b); }
.mf-path { margin: 0; }
.mf-path svg { display: block; overflow: visible; }
.mf-path text { fill: var(--body-text-color-subdued); font-size: 11px; }
.mf-path .mf-decides { fill: var(--body-text-color); font-weight: 600; }
.mf-grid { stroke: var(--border-color-primary); stroke-width: 1; opacity: .6; }
.mf-boundary { stroke: var(--body-text-color); stroke-width: 1.5; stroke-dasharray: 6 4; }
.mf-least { stroke: var(--body-text-color-subdued); stroke-width: 1; stroke-dasharray: 2 4; }
.mf-line-a, .mf-line-b { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.mf-line-a { stroke: var(--mf-a); }
.mf-line-b { stroke: var(--mf-b); stroke-dasharray: 7 3; }
.mf-dot-a { fill: var(--mf-a); }
.mf-dot-b { fill: var(--mf-b); }
.mf-path figcaption { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .85rem; }
.mf-key::before { content: ""; display: inline-block; width: 1.5rem; margin-right: .4rem; vertical-align: middle;
  border-top: 3px solid var(--mf-a); }
.mf-key-b::before { border-top: 3px dashed var(--mf-b); }
.mf-key-least::before { border-top: 2px dotted var(--body-text-color-subdued); }
.mf-details { margin-top: 1rem; }
.mf-details summary { cursor: pointer; }
@media (max-width: 520px) {
  .mf-forest thead tr, .mf-forest tbody tr { display: grid; grid-template-columns: 1fr auto; }
  .mf-standings .mf-forest tr > :not([colspan]) { width: auto; }
  .mf-standings .mf-forest tr > :nth-child(2) { grid-column: 1 / 3; grid-row: 2; padding-top: 0; }
  .mf-forest thead tr > :not(:nth-child(2)) { display: none; }
  .mf-forest tr > [colspan] { grid-column: 1 / 3; }
}
"""


class StandingsPage:
    """Shows the votes of ``model`` in MLflow at ``tracking_uri`` (None: where MLflow tracks), but for ``open_turns``."""

    def __init__(
        self,
        model: str,
        tracking_uri: str | None = None,
        *,
        interval_s: float = INTERVAL_S,
        open_turns: OpenTurns = frozenset,
    ) -> None:
        self.model = model
        self.feed = StandingsFeed(model, tracking_uri, interval_s=interval_s, open_turns=open_turns)
        self._interval_s = interval_s

    def build(self, tab: gr.Tab) -> None:
        """Within ``with gr.Tab(...) as tab`` of a ``gr.Tabs``: asks MLflow only while somebody has this tab open."""
        with gr.Column(elem_classes="mf-standings"):
            state = gr.HTML(elem_id="standings-state")
            picker = gr.Dropdown(label="Versions compared", visible=False, elem_id="standings-pair")
            pair = gr.HTML(READING, elem_id="standings-of-pair")
            overview = gr.HTML(elem_id="standings-overview")
            not_counted = gr.HTML(elem_id="standings-not-counted")
        seen = gr.State()
        timer = gr.Timer(self._interval_s, active=False)
        shown = [state, picker, pair, overview, not_counted, seen]
        # not queued: Gradio counts all queued events of the past anew after each, and here are many
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        tab.select(self._show, [picker, seen], shown, **quiet)
        timer.tick(self._show, [picker, seen], shown, **quiet)
        picker.input(self._show, [picker, seen], shown, **quiet)
        tab.select(lambda: gr.Timer(active=True), None, timer, **quiet)
        if isinstance(tab.parent, gr.Tabs):
            tab.parent.select(self._is_still_open(tab), None, timer, **quiet)
        api(self.standings, api_name="standings", concurrency_limit=None)

    async def standings(self) -> dict[str, Any]:
        """What people and judges prefer by now: counts, win rates, the path to a decision, agreement, biases, ranking."""
        glance = await self.feed.look()
        standings = glance.standings or Standings(self.model, 0, {}, (), None)
        return standings_json(standings, read_at=glance.read_at, fault=glance.fault)

    async def _show(self, chosen: str | None, seen: list[Any] | None) -> list[Any]:
        """What changed since this viewer's last look (``seen``): a fault told twice would be read aloud twice."""
        glance = await self.feed.look()
        line = state_html(self.model, glance.standings, glance.read_at, glance.fault)
        told, shown = seen or (None, None)
        if shown == [glance.number, chosen] or glance.standings is None:
            return [gr.skip() if line == told else line, *[gr.skip()] * 4, [line, shown]]
        standing = glance.standings.pair(_pair(chosen))
        picker = _picker(glance.standings, standing.pair if standing else None)
        empty = NONE_COUNTS if glance.standings.votes else NO_VOTES
        return [
            line,
            picker,
            empty if standing is None else pair_html(standing),
            overview_html(glance.standings),
            not_counted_html(glance.standings),
            [line, [glance.number, _key(standing.pair) if standing else chosen]],
        ]

    @staticmethod
    def _is_still_open(tab: gr.Tab):  # type: ignore[no-untyped-def]
        def timer(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == tab.label)

        return timer


def _picker(standings: Standings, pair: Pair | None) -> gr.Dropdown:
    choices = [
        (f"{_named(one.pair[0], standings)} against {_named(one.pair[1], standings)}", _key(one.pair))
        for one in standings.pairs
    ]
    return gr.Dropdown(choices=choices, value=_key(pair) if pair else None, visible=len(choices) > 1)


def _named(version: str, standings: Standings) -> str:
    aliases = sorted(alias for alias, held_by in standings.aliases.items() if held_by == version)
    return f"{version_name(version)} ({', '.join(aliases)})" if aliases else version_name(version)


def _key(pair: Pair) -> str:
    return " ".join(pair)


def _pair(key: str | None) -> Pair | None:
    candidate, _, champion = (key or "").partition(" ")
    return (candidate, champion) if champion else None
