"""The standings of a model's versions by people's and judges' votes.

The numbers come from the gate's own computation, people and judges are never pooled, and a vote that its voter may
still change is left out.
"""

from gradio_app.standings.feed import StandingsFeed, StandingsSnapshot
from gradio_app.standings.html import headline, pair_html
from gradio_app.standings.json import standings_json
from gradio_app.standings.standings import PairStanding, Standings, standings_of
from gradio_app.standings.vote_path import VotePath, vote_path

__all__ = [
    "PairStanding",
    "Standings",
    "StandingsFeed",
    "StandingsSnapshot",
    "VotePath",
    "headline",
    "pair_html",
    "standings_json",
    "standings_of",
    "vote_path",
]
