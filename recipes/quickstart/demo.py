"""``make demo``: trains the quickstart through ``mlflow run``, then asks base and adapter the same question.

Everything lands in ``.demo/`` (MLflow store, artifacts, job folders); look at it with
``mlflow ui --backend-store-uri sqlite:///.demo/mlflow.db``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).resolve().parent
QUESTION_ROW = 3  # any held-out row would do


def main() -> int:
    """Runs the demo and returns the exit code of ``mlflow run``."""
    folder = Path.cwd() / ".demo"
    folder.mkdir(exist_ok=True)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    os.environ |= {
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_FINETUNE_HOME": str(folder / "home"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [str(Path(sys.executable).parent / "mlflow"), "run", str(RECIPE), "-b", "finetune", "-e", "lora"]
    print("$ mlflow run recipes/quickstart -b finetune -e lora", flush=True)
    code = subprocess.run(command, cwd=folder, check=False).returncode
    if code == 0:
        show_answers(store)
    return code


def show_answers(store: str) -> None:
    """One held-out question, answered by the base and by the registered adapter loaded through MLflow."""
    import mlflow

    mlflow.set_tracking_uri(store)
    lines = (RECIPE / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[QUESTION_ROW])
    model = mlflow.pyfunc.load_model("models:/quickstart@challenger")
    adapted = model.predict([row["prompt"]])[0]
    with model.unwrap_python_model().model.disable_adapter():
        base = model.predict([row["prompt"]])[0]
    print(f"  question {row['prompt']!r} (expected: {row['completion']})")
    print(f"  before   {base!r}")
    print(f"  after    {adapted!r}")


if __name__ == "__main__":
    sys.exit(main())
