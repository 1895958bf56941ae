"""``make playground``: the quickstart's model against its base, blind, in the browser; trained first where it is not yet.

Everything lands in ``.demo/``, as of ``make demo``. Arguments go to ``mlflow-finetune playground``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from demo import open_folder, train

MODEL = "quickstart"


def main(arguments: list[str]) -> int:
    """The exit code of ``mlflow run`` where that fails; else it becomes the playground, until Ctrl-C."""
    folder = open_folder()
    if not is_trained() and (code := train(folder)):
        return code
    command = [str(Path(sys.executable).parent / "mlflow-finetune"), "playground", "--model", MODEL]
    print(f"$ mlflow-finetune playground --model {MODEL} --engine transformers --open", flush=True)
    command += ["--engine", "transformers", "--open", "--store", str(folder / "store")]
    os.chdir(folder)
    return os.execv(command[0], [*command, *arguments])


def is_trained() -> bool:
    """Has an earlier one, or ``make demo``, registered a version?"""
    from mlflow import MlflowClient

    return bool(MlflowClient().search_model_versions(f"name = '{MODEL}'"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
