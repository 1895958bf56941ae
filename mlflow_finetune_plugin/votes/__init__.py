"""Votes between two versions of a model: cast into a journal on this disk, mirrored into MLflow, read and reported there.

A vote that was acknowledged is on the disk. ``report_votes`` summarises a model's votes, ``read_preferences`` turns them into
preference rows, ``read_votes`` gives them as they are.
"""

from mlflow_finetune_plugin.votes.journal.journal import Entry, Journal, journal_folder
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote, Receipt, Side, Turn
from mlflow_finetune_plugin.votes.mlflow.mirror import Flushed, Mirror
from mlflow_finetune_plugin.votes.mlflow.reading import Reading, gate_votes, read_texts, read_votes
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import STOPPED, SpokenAnswer
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog
from mlflow_finetune_plugin.votes.preferences import Preferences, read_preferences
from mlflow_finetune_plugin.votes.report import VotesReport, report_votes

__all__ = [
    "ANONYMOUS",
    "STOPPED",
    "CastVote",
    "Entry",
    "Flushed",
    "Journal",
    "Mirror",
    "Preferences",
    "Reading",
    "Receipt",
    "Side",
    "SpokenAnswer",
    "Turn",
    "TurnLog",
    "VotesReport",
    "gate_votes",
    "journal_folder",
    "read_preferences",
    "read_texts",
    "read_votes",
    "report_votes",
]
