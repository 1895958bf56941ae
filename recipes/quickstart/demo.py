"""``make demo``: train the quickstart with ``mlflow run``, serve it, and ask base and adapter the same question.

Everything is written to ``.demo/`` (MLflow store, artifacts, job folders). The last lines say how to look at it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).resolve().parent
QUESTION_ROW = (
    2  # a held-out row that the tiny base answers with a whole sentence; most of its answers are single odd words
)
WAIT_S = 300
PROGRAMS = Path(sys.executable).parent


def main() -> int:
    """Run the demo and return the exit code of ``mlflow run``, then of the service."""
    folder = open_folder()
    code = train(folder) or show_answers(folder)
    if code == 0:
        print(next_steps(folder))
    return code


def open_folder() -> Path:
    """Return ``.demo``, and let this process and its children use the MLflow store in it."""
    folder = Path.cwd() / ".demo"
    folder.mkdir(exist_ok=True)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "MLFLOW_FINETUNE_HOME": str(folder / "home"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return folder


def train(folder: Path) -> int:
    """Train the quickstart as a user does, and return the exit code of ``mlflow run``."""
    command = [str(PROGRAMS / "mlflow"), "run", str(RECIPE), "-b", "finetune", "-e", "lora"]
    print("$ mlflow run recipes/quickstart -b finetune -e lora", flush=True)
    return subprocess.run(command, cwd=folder, check=False).returncode


def show_answers(folder: Path) -> int:
    """Serve the registered model, and ask base and adapter the same held-out question over OpenAI's API."""
    import httpx

    port = _free_port()
    command = [str(PROGRAMS / "mlflow-finetune"), "serve", "quickstart"]
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
        for model in ("base", "quickstart"):
            body = {"model": model, "messages": [{"role": "user", "content": row["prompt"]}], "temperature": 0}
            answer = httpx.post(f"{url}/v1/chat/completions", json={**body, "max_tokens": 16}, timeout=60)
            answer.raise_for_status()
            text = answer.json()["choices"][0]["message"]["content"]
            print(f"  {model:<11} {text!r} (version {answer.headers['x-finetune-version']})")
    finally:
        service.terminate()
        code = service.wait(90)
    return code


def next_steps(folder: Path) -> str:
    """Return what to do after the demo, as commands that work in the folder it was started in."""
    store = f"sqlite:///{folder / 'mlflow.db'}"
    return f"""
What next:
  MLflow's pages   {shlex.quote(program("mlflow"))} ui --backend-store-uri {shlex.quote(store)}
                   then open http://127.0.0.1:5000, experiment quickstart
  the playground   make playground      (base and adapter side by side, blind, in the browser)
  your own data    {shlex.quote(program("mlflow-finetune"))} init my-bot
"""


def program(name: str) -> str:
    """Return a program that was installed beside this Python, as a path from the working folder where it lies there."""
    path = PROGRAMS / name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _wait_until_ready(url: str, service: subprocess.Popen[bytes]) -> dict[str, Any]:
    import httpx

    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and service.poll() is None:
        with contextlib.suppress(httpx.HTTPError):  # until it listens
            status = httpx.get(f"{url}/readyz", timeout=5).json()
            if status["status"] == "ready":
                return dict(status)
        time.sleep(0.2)
    raise SystemExit("the service is not ready; its log: .demo/serve.log")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
