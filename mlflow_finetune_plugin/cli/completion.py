"""``mlflow-finetune completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> int:
    """Print the completion script of a shell.

    For bash: mlflow-finetune completion bash >> ~/.bashrc
    """
    from mlflow_finetune_plugin.cli.main import PROGRAM, cli

    script = get_completion_class(shell)
    assert script is not None
    print(script(cli, {}, PROGRAM, "_MLFLOW_FINETUNE_COMPLETE").source())
    return 0
