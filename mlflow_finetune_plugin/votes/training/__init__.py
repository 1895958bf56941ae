"""Votes as rows to train on: in the form that an objective takes, grouped by voter and prompt, and written once for each run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.votes.training.files import VoteFile, write_vote_files
    from mlflow_finetune_plugin.votes.training.rows import voted_rows

__all__ = ["VoteFile", "voted_rows", "write_vote_files"]

__getattr__ = names_on_first_use(__name__, {"VoteFile": "files", "voted_rows": "rows", "write_vote_files": "files"})
