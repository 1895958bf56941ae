"""Shell completion, asked as bash asks for it."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.process


def complete(words: str) -> list[str]:
    parts = words.split(" ")
    environment = {
        **os.environ,
        "_MLFLOW_FINETUNE_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    code = "from mlflow_finetune_plugin.cli.main import PROGRAM, cli; cli(prog_name=PROGRAM)"
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return [line.partition(",")[2] for line in shown.stdout.splitlines()]


def test_commands_and_options_are_completed():
    assert complete("mlflow-finetune pl") == ["plan", "playground"]
    assert "--dry-run" in complete("mlflow-finetune promote --dr")


def test_the_script_of_bash_names_the_program(capsys):
    from mlflow_finetune_plugin.cli.main import main

    assert main(["completion", "bash"]) == 0
    assert "mlflow-finetune" in capsys.readouterr().out
