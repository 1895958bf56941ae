"""``make demo``: trains the quickstart through ``mlflow run``, serves it, and asks base and adapter the same question.

Everything lands in ``.demo/`` (MLflow store, artifacts, job folders); look at it with
``mlflow ui --backend-store-uri sqlite:///.demo/mlflow.db``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parent
QUESTION_ROW = 3  # any held-out row would do
WAIT_S = 300


def main() -> int:
    """Runs the demo and returns the exit code of ``mlflow run``, then of the service."""
    folder = open_folder()
    return train(folder) or show_answers(folder)


def open_folder() -> Path:
    """``.demo``, with this process's MLflow in it."""
    folder = Path.cwd() / ".demo"
    folder.mkdir(exist_ok=True)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_FINETUNE_HOME": str(folder / "home"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return folder


def train(folder: Path) -> int:
    """The quickstart, as its users have it; the exit code of ``mlflow run``."""
    command = [str(Path(sys.executable).parent / "mlflow"), "run", str(RECIPE), "-b", "finetune", "-e", "lora"]
    print("$ mlflow run recipes/quickstart -b finetune -e lora", flush=True)
    return subprocess.run(command, cwd=folder, check=False).returncode


def show_answers(folder: Path) -> int:
    """Serves what was registered and asks base and adapter the same held-out question over OpenAI's API."""
    import httpx

    port = _free_port()
    command = [str(Path(sys.executable).parent / "mlflow-finetune"), "serve", "quickstart"]
    print(f"$ mlflow-finetune serve quickstart --port {port}", flush=True)
    with (folder / "serve.log").open("wb") as log:
        service = subprocess.Popen(
            [*command, "--port", str(port), "--store", str(folder / "store")], stdout=log, stderr=log, cwd=folder
        )
    try:
        url = f"http://127.0.0.1:{port}"
        ready = _wait_until_ready(url, service)
        print(f"  ready    {url}/v1, engine {ready['engines'][0]['engine']}")
        lines = (RECIPE / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
        row = json.loads(lines[QUESTION_ROW])
        print(f"  question {row['prompt']!r} (expected: {row['completion']})")
        for model in ("base", "quickstart@challenger"):
            body = {"model": model, "messages": [{"role": "user", "content": row["prompt"]}], "temperature": 0}
            answer = httpx.post(f"{url}/v1/chat/completions", json={**body, "max_tokens": 16}, timeout=60)
            answer.raise_for_status()
            said = answer.json()["choices"][0]["message"]["content"]
            print(f"  {model:<22} {said!r} (version {answer.headers['x-finetune-version']})")
    finally:
        service.terminate()
        code = service.wait(90)
    return code


def _wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> dict[str, Any]:
    import httpx

    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and service.poll() is None:
        with contextlib.suppress(httpx.HTTPError):  # until it listens
            found = httpx.get(f"{url}/readyz", timeout=5).json()
            if found["status"] == "ready":
                return dict(found)
        time.sleep(0.2)
    raise SystemExit("the service is not ready; its log: .demo/serve.log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
