"""The command ``mlflow-finetune``: one file per command."""

from mlflow_finetune_plugin.cli.main import main

__all__ = ["main"]
