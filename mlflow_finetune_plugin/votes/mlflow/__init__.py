"""Mirror votes and turns into MLflow, and read votes back.

The room promises that every vote of the journal reaches MLflow once, however often the server fails, and that a vote which
does not count is listed with the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.votes.mlflow.mirror import Mirror
    from mlflow_finetune_plugin.votes.mlflow.reading import Reading, gate_votes, read_texts, read_votes
    from mlflow_finetune_plugin.votes.mlflow.traces import VoteTraces
    from mlflow_finetune_plugin.votes.mlflow.turn_log import TurnLog

__all__ = ["Mirror", "Reading", "TurnLog", "VoteTraces", "gate_votes", "read_texts", "read_votes"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "Mirror": "mirror",
        "Reading": "reading",
        "TurnLog": "turn_log",
        "VoteTraces": "traces",
        "gate_votes": "reading",
        "read_texts": "reading",
        "read_votes": "reading",
    },
)
