"""Two trained models on two bases, served together and asked through the `openai` client: what it says, how fast, who spoke.

    python benchmarks/served_together.py BANKING77 BASE [--engine vllm] [--engine transformers] [--rows 100] [--max-steps 300]

BANKING77 is the folder with train.csv.gz and test.csv, BASE a folder with a model for it. The quickstart and a LoRA on banking77
are trained and registered by `mlflow run`; then both are served by each engine. Each model answers the first held-out rows:
greedy answers are compared with those of `mlflow.pyfunc`, receipts with the registry, streamed answers with whole ones.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from mlflow_finetune_plugin.config.reference import mlproject

QUICKSTART = Path(__file__).resolve().parents[1] / "recipes" / "quickstart"
INSTRUCTION = "What does the customer want? "


def train(project: Path, scratch: Path, *parameters: str) -> None:
    mlflow = Path(sys.executable).parent / "mlflow"
    command = [str(mlflow), "run", str(project), "-b", "finetune", "-e", "lora", *parameters]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode or "alias challenger" not in done.stdout + done.stderr:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-3000:])
    lines = [line.strip() for line in done.stdout.splitlines() + done.stderr.splitlines()]
    print(f"trained {project.name} in {time.perf_counter() - started:.0f} s")
    print(*(f"  {line}" for line in lines if "exact_match" in line or "alias challenger" in line), sep="\n")


def banking_project(source: Path, base: Path, folder: Path, max_steps: int) -> Path:
    folder.mkdir()
    (folder / "MLproject").write_text(mlproject("banking77"))
    (folder / "finetune.yaml").write_text(
        f"base_model: {base}\n"
        f"data:\n  train: {{path: {source / 'train.csv.gz'}, instruction: '{INSTRUCTION}'}}\n"
        f"  eval: {{path: {source / 'test.csv'}, instruction: '{INSTRUCTION}'}}\n"
        f"training: {{max_steps: {max_steps}}}\neval: {{max_rows: 200}}\nregister: banking77\n"
    )
    return folder


def banking_rows(source: Path, rows: int) -> list[tuple[str, str]]:
    with (source / "test.csv").open(encoding="utf-8", newline="") as file:
        rows_read = list(csv.DictReader(file))[: rows * 7 : 7]
    return [(row["text"], row.get("category") or row.get("label") or "") for row in rows_read]


async def ask_all(
    url: str, model: str, questions: list[str], *, stream: bool
) -> tuple[list[str], list[float], set[str]]:
    """(answers, milliseconds to the first token, versions that spoke); eight at a time."""
    from openai import AsyncOpenAI

    client, gate = AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0), asyncio.Semaphore(8)
    firsts: list[float] = []
    spoke: set[str] = set()

    async def ask(question: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 24}
        async with gate:
            started = time.perf_counter()
            raw = await client.chat.completions.with_raw_response.create(**body, stream=stream)
            spoke.add(str(raw.headers.get("x-finetune-version")))
            if not stream:
                return raw.parse().choices[0].message.content or ""
            parts = []
            async for event in raw.parse():
                if not parts:
                    firsts.append(1000 * (time.perf_counter() - started))
                parts += [choice.delta.content or "" for choice in event.choices]
            return "".join(parts)

    answers = list(await asyncio.gather(*(ask(question) for question in questions)))
    await client.close()
    return answers, firsts, spoke


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("banking77", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--engine", action="append", choices=("vllm", "transformers"))
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--max-steps", type=int, default=300)
    options = parser.parse_args()
    source, base = options.banking77.resolve(), options.base.resolve()
    scratch = Path(tempfile.mkdtemp())
    uri = f"sqlite:///{scratch}/mlflow.db"
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "MLFLOW_FINETUNE_HOME": str(scratch / "home"), "HF_HUB_OFFLINE": "1"}
    os.chdir(scratch)
    train(QUICKSTART, scratch)
    train(banking_project(source, base, scratch / "banking77", options.max_steps), scratch)

    import json

    import mlflow
    from serving_process import serving

    lines = (QUICKSTART / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    quick = [(row["prompt"], row["completion"]) for row in map(json.loads, lines)][: options.rows]
    held_out = {"quickstart": quick, "banking77": banking_rows(source, options.rows)}
    questions_of = {
        "quickstart": [q for q, _ in quick],
        "banking77": [INSTRUCTION + q for q, _ in held_out["banking77"]],
    }
    expected = {}
    for name, questions in questions_of.items():
        loaded = mlflow.pyfunc.load_model(f"models:/{name}@challenger")
        expected[name] = list(loaded.predict(questions, params={"max_new_tokens": 24}))
    for engine in options.engine or ["vllm", "transformers"]:
        with serving(scratch, uri, "quickstart", "banking77", "--engine", engine) as service:
            ready = service.get("/readyz")[1]
            print(f"engine {engine}: {ready['status']}, {len(ready['engines'])} engines, {time.strftime('%Y-%m-%d')}")
            for name, rows in held_out.items():
                model = f"{name}@challenger"
                whole, _, spoke = asyncio.run(ask_all(service.url, model, questions_of[name], stream=False))
                streamed, firsts, _ = asyncio.run(ask_all(service.url, model, questions_of[name], stream=True))
                same = sum(a == b for a, b in zip(whole, expected[name], strict=True))
                right = sum(a.strip() == answer.strip() for a, (_, answer) in zip(whole, rows, strict=True))
                streams = sum(a == b for a, b in zip(whole, streamed, strict=True))
                tags = mlflow.MlflowClient().get_model_version(name, spoke.copy().pop()).tags
                certificate = next(
                    value for tag, value in tags.items() if tag.startswith(f"finetune.certificate.{engine}")
                )
                print(
                    f"  {name}: version {', '.join(sorted(spoke))}; {len(rows)} rows, right {right}, as mlflow.pyfunc says "
                    f"{same}, streamed as whole {streams}; first token median {statistics.median(firsts):.0f} ms at 8 clients"
                )
                print(f"    certificate: {certificate}")


if __name__ == "__main__":
    main()
