"""Answer a checked request with the version that it names.

The room promises that the answer of a version is sent whole or its failure is reported once, that a request whose answer had not
begun is sent again when its engine was lost, and that copies for shadow versions never delay an answer.
"""

from __future__ import annotations

from mlflow_finetune_plugin.serving.router.answering.answering import Answering
from mlflow_finetune_plugin.serving.router.answering.responders import Responders

__all__ = ["Answering", "Responders"]
