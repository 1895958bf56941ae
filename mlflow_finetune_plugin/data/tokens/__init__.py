"""Convert conversations to token ids and loss masks, and store them in memory-mapped files.

The room promises that training sees exactly the tokens that inference will see.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.data.tokens.batch_encoder import BatchEncoder as BatchEncoder
    from mlflow_finetune_plugin.data.tokens.batches import EncodedBatch as EncodedBatch
    from mlflow_finetune_plugin.data.tokens.encoding_pool import EncodingPool as EncodingPool
    from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer as ChatRenderer
    from mlflow_finetune_plugin.data.tokens.renderer import Example as Example
    from mlflow_finetune_plugin.data.tokens.token_file import IGNORED_LABEL as IGNORED_LABEL
    from mlflow_finetune_plugin.data.tokens.token_file import TokenFile as TokenFile
    from mlflow_finetune_plugin.data.tokens.token_report import TokenReport as TokenReport

_MODULES = {
    "BatchEncoder": "batch_encoder",
    "ChatRenderer": "renderer",
    "EncodedBatch": "batches",
    "EncodingPool": "encoding_pool",
    "Example": "renderer",
    "IGNORED_LABEL": "token_file",
    "TokenFile": "token_file",
    "TokenReport": "token_report",
}

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


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
