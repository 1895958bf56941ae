"""The votes ledger: cast into a journal on this disk, mirrored into MLflow beside the turns, read there by whoever weighs."""

from mlflow_finetune_plugin.votes.journal.journal import Entry, Journal, journal_folder
from mlflow_finetune_plugin.votes.journal.vote import ANONYMOUS, CastVote, Receipt, Side, Turn
from mlflow_finetune_plugin.votes.mlflow.mirror import Flushed, Mirror
from mlflow_finetune_plugin.votes.mlflow.reading import Reading, gate_votes, read_texts, read_votes
from mlflow_finetune_plugin.votes.mlflow.spoken_answer import STOPPED, SpokenAnswer
from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog

__all__ = [
    "ANONYMOUS",
    "STOPPED",
    "CastVote",
    "Entry",
    "Flushed",
    "Journal",
    "Mirror",
    "Reading",
    "Receipt",
    "Side",
    "SpokenAnswer",
    "Turn",
    "TurnLog",
    "gate_votes",
    "journal_folder",
    "read_texts",
    "read_votes",
]
