"""Votes between two versions of a model: cast into a journal on disk, mirrored into MLflow, read and reported from there.

A vote that ``Journal.cast`` returned for is on disk. ``report_votes`` summarises the votes of a model, ``read_votes`` returns
them with the reasons why some do not count, and ``read_preferences`` turns them into preference data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.votes.journal.journal import Journal
    from mlflow_finetune_plugin.votes.journal.vote import CastVote, Receipt, Turn, VoteSide
    from mlflow_finetune_plugin.votes.mlflow.mirror import Mirror
    from mlflow_finetune_plugin.votes.mlflow.reading import read_votes
    from mlflow_finetune_plugin.votes.preferences import read_preferences
    from mlflow_finetune_plugin.votes.report import VotesReport, report_votes

__all__ = [
    "CastVote",
    "Journal",
    "Mirror",
    "Receipt",
    "Turn",
    "VoteSide",
    "VotesReport",
    "read_preferences",
    "read_votes",
    "report_votes",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "CastVote": "journal.vote",
        "Journal": "journal.journal",
        "Mirror": "mlflow.mirror",
        "Receipt": "journal.vote",
        "Turn": "journal.vote",
        "VoteSide": "journal.vote",
        "VotesReport": "report",
        "read_preferences": "preferences",
        "read_votes": "mlflow.reading",
        "report_votes": "report",
    },
)
