"""``make playground``: compare the quickstart's model with its base, blind, in the browser. Train it first if necessary.

Everything is written to ``.demo/``, as by ``make demo``. Arguments are passed on to ``mlflow-finetune playground``.
"""

from __future__ import annotations

import os
import sys

from demo import PROGRAMS, open_folder, train

MODEL = "quickstart"


def main(arguments: list[str]) -> int:
    """Return the exit code of ``mlflow run`` if that fails; else this process becomes the playground until Ctrl-C."""
    folder = open_folder()
    if not is_trained() and (code := train(folder)):
        return code
    command = [str(PROGRAMS / "mlflow-finetune"), "playground", MODEL]
    print(f"$ mlflow-finetune playground {MODEL} --engine transformers --open", flush=True)
    command += ["--engine", "transformers", "--open", "--store", str(folder / "store")]
    os.chdir(folder)
    return os.execv(command[0], [*command, *arguments])


def is_trained() -> bool:
    """Return whether an earlier call, or ``make demo``, has registered a version."""
    from mlflow import MlflowClient

    return bool(MlflowClient().search_model_versions(f"name = '{MODEL}'"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
