"""Try what a registered version brings, its tokenizer and its chat template, in a process with limits of time and memory.

The room promises that a version which could block or fill an engine is refused before any engine reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.versions.trials.template import TemplateReport, try_template
    from mlflow_finetune_plugin.serving.versions.trials.tokenizer import try_tokenizer

__all__ = [
    "TemplateReport",
    "try_template",
    "try_tokenizer",
]

__getattr__ = names_on_first_use(
    __name__,
    {
        "TemplateReport": "template",
        "try_template": "template",
        "try_tokenizer": "tokenizer",
    },
)
