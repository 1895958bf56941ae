"""Convert conversations to token ids and loss masks, and store them in memory-mapped files.

The room promises that training sees exactly the tokens that inference will see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.tokens.batch_encoder import BatchEncoder
    from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch
    from mlflow_finetune_plugin.data.tokens.encoding_pool import EncodingPool
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer, Example
    from mlflow_finetune_plugin.data.tokens.token_file import IGNORED_LABEL, TokenFile
    from mlflow_finetune_plugin.data.tokens.token_report import TokenReport

__all__ = [
    "IGNORED_LABEL",
    "BatchEncoder",
    "ChatRenderer",
    "EncodedBatch",
    "EncodingPool",
    "Example",
    "TokenFile",
    "TokenReport",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "BatchEncoder": "batch_encoder",
        "ChatRenderer": "renderer",
        "EncodedBatch": "batches",
        "EncodingPool": "encoding_pool",
        "Example": "renderer",
        "IGNORED_LABEL": "token_file",
        "TokenFile": "token_file",
        "TokenReport": "token_report",
    },
)
