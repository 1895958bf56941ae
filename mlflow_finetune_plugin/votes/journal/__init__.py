"""The journal: the votes of a model, one line each, in an append-only file.

The room promises that a vote is on disk before it is acknowledged, that a damaged line is recognised, and that a deleted
voter's texts are gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.votes.journal.journal import Journal
    from mlflow_finetune_plugin.votes.journal.shared_links import SharedConversations
    from mlflow_finetune_plugin.votes.journal.tombstones import Tombstones
    from mlflow_finetune_plugin.votes.journal.vote import CastVote, Receipt, Turn, VoteSide

__all__ = ["CastVote", "Journal", "Receipt", "SharedConversations", "Tombstones", "Turn", "VoteSide"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "CastVote": "vote",
        "Journal": "journal",
        "Receipt": "vote",
        "SharedConversations": "shared_links",
        "Tombstones": "tombstones",
        "Turn": "vote",
        "VoteSide": "vote",
    },
)
