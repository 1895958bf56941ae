"""The Standings tab: what the votes say, updated while the tab is open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
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

VotedPair = Callable[[gr.Request], Pair | None]
"""Returns the two versions that the session of a request voted on last."""


@dataclass(frozen=True)
class _Display:
    """What an open page displays.

    ``voted`` is the pair of the session's last vote when the tab was opened. ``awaited`` is the same pair while the
    standings do not hold that vote yet.
    """

    line: str = ""
    number: int = -1
    pair: str | None = None
    voted: Pair | None = None
    awaited: Pair | None = None


class StandingsPage:
    """The votes of one registered model.

    Args:
        model: the registered model.
        tracking_uri: where its votes are; None means where MLflow tracks.
        interval_s: seconds between two updates of an open tab.
        open_turns: turns whose votes may still change and are left out.
        live: whether the results of undecided pairs are shown.
        voted_pair: gives the pair that the tab opens on; None opens on the pair with the most votes.
    """

    def __init__(
        self,
        model: str,
        tracking_uri: str | None = None,
        *,
        interval_s: float = INTERVAL_S,
        open_turns: OpenTurns = frozenset,
        voted_pair: VotedPair = lambda request: None,
        live: bool = False,
    ) -> None:
        self.model = model
        self.feed = StandingsFeed(model, tracking_uri, interval_s=interval_s, open_turns=open_turns, live=live)
        self._interval_s = interval_s
        self._voted_pair = voted_pair

    def build(self, tab: gr.Tab) -> None:
        """Build the components within ``with gr.Tab(...) as tab``. MLflow is read only while the tab is open."""
        with gr.Column(elem_classes="mf-standings"):
            state = gr.HTML(elem_id="standings-state")
            picker = gr.Dropdown(label="Versions compared", visible=False, elem_id="standings-pair")
            pair = gr.HTML(READING, elem_id="standings-of-pair")
            overview = gr.HTML(elem_id="standings-overview")
            not_counted = gr.HTML(elem_id="standings-not-counted")
        display = gr.State()
        timer = gr.Timer(self._interval_s, active=False)
        inputs, outputs = [picker, display], [state, picker, pair, overview, not_counted, display]
        # Not queued: Gradio counts all past events of the queue again after each one, and the timer makes many.
        quiet: dict[str, Any] = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        tab.select(self._open, inputs, outputs, **quiet)
        timer.tick(self._update, inputs, outputs, **quiet)
        picker.input(self._pick, inputs, outputs, **quiet)
        tab.select(lambda: gr.Timer(active=True), None, timer, **quiet)
        if isinstance(tab.parent, gr.Tabs):
            tab.parent.select(self._is_still_open(tab), None, timer, **quiet)
        api(self.standings, api_name="standings", concurrency_limit=None)

    async def standings(self) -> dict[str, Any]:
        """Return what people and judges prefer: counts, win rates, the path to a decision, agreement, biases, ranking."""
        snapshot = await self.feed.latest()
        standings = snapshot.standings or Standings(self.model, 0, {}, (), None)
        return standings_json(standings, read_at=snapshot.read_at, fault=snapshot.fault)

    async def _open(self, picked: str | None, display: _Display | None, request: gr.Request) -> list[Any]:
        """Open on the pair of the session's last vote, unless the viewer picked another one since that vote."""
        display, voted = display or _Display(), self._voted_pair(request)
        if voted is not None and voted != display.voted:
            display = replace(display, voted=voted, awaited=voted)
        return await self._update(picked, display)

    async def _pick(self, picked: str | None, display: _Display | None) -> list[Any]:
        return await self._update(picked, replace(display or _Display(), awaited=None))

    async def _update(self, picked: str | None, display: _Display | None) -> list[Any]:
        """Return what changed since ``display``: a screen reader would read an unchanged fault again."""
        display = display or _Display()
        snapshot = await self.feed.latest()
        standings = snapshot.standings
        line = state_html(self.model, standings, snapshot.read_at, snapshot.fault)
        changed_line = gr.skip() if line == display.line else line
        if standings is None:
            return [changed_line, *[gr.skip()] * 4, replace(display, line=line)]
        voted = standings.voted_pair(display.awaited)
        standing = voted or standings.pair(_pair(picked))
        key = _key(standing.pair) if standing else None
        awaited = None if voted is not None else display.awaited
        current = replace(display, line=line, number=snapshot.number, pair=key, awaited=awaited)
        if (current.number, current.pair) == (display.number, display.pair):
            return [changed_line, *[gr.skip()] * 4, current]
        empty = NONE_COUNTS if standings.votes else NO_VOTES
        return [
            line,
            _picker(standings, standing.pair if standing else None),
            empty if standing is None else pair_html(standing),
            overview_html(standings),
            not_counted_html(standings),
            current,
        ]

    @staticmethod
    def _is_still_open(tab: gr.Tab):  # type: ignore[no-untyped-def]
        def timer(event: gr.SelectData) -> gr.Timer:
            return gr.Timer(active=event.value == tab.label)

        return timer


def _picker(standings: Standings, pair: Pair | None) -> gr.Dropdown:
    choices = [
        (f"{_named(candidate, standings)} against {_named(champion, standings)}", _key((candidate, champion)))
        for candidate, champion in (standing.pair for standing in standings.pairs)
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
