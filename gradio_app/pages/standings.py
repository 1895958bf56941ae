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
