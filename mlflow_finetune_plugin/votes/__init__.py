"""The votes ledger: cast into a journal on this disk, mirrored into MLflow, read from there by whoever weighs them."""

from mlflow_finetune_plugin.votes.journal import Entry, Journal, journal_folder
from mlflow_finetune_plugin.votes.mirror import Flushed, Mirror
from mlflow_finetune_plugin.votes.reading import Reading, gate_votes, read_texts, read_votes
from mlflow_finetune_plugin.votes.vote import ANONYMOUS, CastVote, Receipt, Side, Turn

__all__ = [
    "ANONYMOUS",
    "CastVote",
    "Entry",
    "Flushed",
    "Journal",
    "Mirror",
    "Reading",
    "Receipt",
    "Side",
    "Turn",
    "gate_votes",
    "journal_folder",
    "read_texts",
    "read_votes",
]
