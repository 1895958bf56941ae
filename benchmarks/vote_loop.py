"""The loop from votes to a challenger: imitation, simulated votes with a known taste, DPO on them, and the taste's win rate.

    python benchmarks/vote_loop.py [--votes 200] [--held-out 200] [--seed 0] [--parameter KEY=VALUE ...] [--folder FOLDER]

A version is trained by imitation on the quickstart's messages, whose answers end with "." in one half of the rows and with "!"
in the other. It answers each of 200 new messages twice at temperature 1. Ten simulated voters, each with prompts of their own,
like answers that end with "!": the one that does wins, two are a tie, none is "both bad". The votes go through the ledger that
the playground uses. Then `mlflow-finetune run -e dpo -P data=votes:NAME -P start_from=models:/NAME/1` with its defaults and
further parameters.

Before and after are measured on the quickstart's held-out messages, which share no phrasing with the others: the taste's win
rate against an own answer of the version that was voted on (0.5 for a tie), and whether the answer still has the right word.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

NAME = "vote-loop"
VOTERS = 10
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "quickstart"


@dataclass(frozen=True)
class Task:
    """A message, and the word that an answer must have."""

    prompt: str
    word: str


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--held-out", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parameter", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
            "MLFLOW_FINETUNE_HOME": str(folder / "home"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        print_table(arguments, loop(arguments, folder))


def loop(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    learned, voted, held_out = tasks(arguments)
    project = write_project(folder, learned, held_out[:50], arguments.seed)
    started = time.monotonic()
    train(project, "lora")
    imitation_s = time.monotonic() - started
    first = answers("1", voted, times=2, seed=arguments.seed)
    choices = cast_votes(voted, first, arguments.seed)
    started = time.monotonic()
    train(project, "dpo", f"data=votes:{NAME}", "data.eval=0.1", f"start_from=models:/{NAME}/1", *arguments.parameter)
    preference_s = time.monotonic() - started
    rival = [a for (a,) in answers("1", held_out, times=1, seed=arguments.seed + 1)]
    sides = {
        version: [a for (a,) in answers(version, held_out, times=1, seed=arguments.seed + 2)] for version in ("1", "2")
    }
    return {
        "choices": choices,
        "imitation_s": imitation_s,
        "preference_s": preference_s,
        "sides": {version: figures(said, rival, held_out) for version, said in sides.items()},
        "samples": [(task.prompt, sides["1"][i], sides["2"][i]) for i, task in enumerate(held_out[:3])],
    }


# training --------------------------------------------------------------------------------------------------------------


def tasks(arguments: argparse.Namespace) -> tuple[list[Task], list[Task], list[Task]]:
    """Return messages to learn from, to vote on, and held out. The last share no phrasing with the others."""
    rows = {name: (RECIPE / "data" / f"{name}.jsonl").read_text("utf-8").splitlines() for name in ("train", "test")}
    known, unknown = (
        [Task(row["prompt"], row["completion"]) for row in map(json.loads, rows[name])] for name in ("train", "test")
    )
    random.Random(arguments.seed).shuffle(known)
    if arguments.votes > len(known) // 2 or arguments.held_out > len(unknown):
        raise SystemExit(f"at most {len(known) // 2} votes and {len(unknown)} held-out messages")
    return known[arguments.votes :], known[: arguments.votes], unknown[: arguments.held_out]


def write_project(folder: Path, learned: Sequence[Task], held_out: Sequence[Task], seed: int) -> Path:
    project, rng = folder / "project", random.Random(seed)
    project.mkdir(exist_ok=True)
    for name, part in (("train", learned), ("test", held_out)):
        rows = [{"prompt": task.prompt, "completion": task.word + rng.choice(".!")} for task in part]
        (project / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (project / "finetune.yaml").write_text(
        "base_model: embedded\n"
        "data: {train: train.jsonl, eval: test.jsonl}\n"
        f"training: {{num_train_epochs: 3, seed: {seed}}}\n"
        "eval: {max_new_tokens: 8}\n"
        f"register: {{name: {NAME}}}\n",
        encoding="utf-8",
    )
    return project


def train(project: Path, entry_point: str, *parameters: str) -> None:
    command = [sys.executable, "-m", "mlflow_finetune_plugin.cli", "run", str(project), "-e", entry_point]
    command += [word for parameter in parameters for word in ("-P", parameter)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, file=sys.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[2:])} ended with exit code {done.returncode}")


# answers and votes -----------------------------------------------------------------------------------------------------


def answers(version: str, asked: Sequence[Task], *, times: int, seed: int) -> list[list[str]]:
    """Return answers at temperature 1, ``times`` of each task."""
    import mlflow
    import torch

    from mlflow_finetune_plugin.logged_models.loading import load_logged

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    loaded = load_logged(f"models:/{NAME}/{version}")
    loaded.tokenizer.padding_side = "left"
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # more threads wait for each other where the cores are shared
    said = []
    for start in range(0, len(asked), 50):
        part = asked[start : start + 50]
        texts = [
            loaded.tokenizer.apply_chat_template(
                [{"role": "user", "content": task.prompt}], tokenize=False, add_generation_prompt=True
            )
            for task in part
        ]
        inputs = loaded.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            tokens = loaded.model.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_p=1.0,
                top_k=0,
                max_new_tokens=8,
                num_return_sequences=times,
                eos_token_id=loaded.card["stop_token_ids"],
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
        new = loaded.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        said += [[text.strip() for text in new[i * times : (i + 1) * times]] for i in range(len(part))]
    return said


def likes(answer: str) -> bool:
    """Return whether an answer has the voters' taste."""
    return answer.endswith("!")


def choice_of(left: str, right: str) -> str:
    if likes(left) == likes(right):
        return "tie" if likes(left) else "both_bad"
    return "left" if likes(left) else "right"


def cast_votes(voted: Sequence[Task], said: Sequence[Sequence[str]], seed: int) -> dict[str, int]:
    """Cast one vote for each task as the playground does, and bring them to MLflow. Return the votes by choice."""
    from mlflow import MlflowClient

    from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG, BASE_DIGEST_TAG
    from mlflow_finetune_plugin.votes import CastVote, Journal, Mirror, Receipt, Turn, VoteSide

    tags = MlflowClient().get_model_version(NAME, "1").tags
    journal, counts = Journal(NAME), dict.fromkeys(("left", "right", "tie", "both_bad"), 0)
    now = datetime.now(UTC)
    for number, (task, (left, right)) in enumerate(zip(voted, said, strict=True)):
        receipts = [
            Receipt(NAME, "1", tags[ADAPTER_DIGEST_TAG], tags[BASE_DIGEST_TAG], f"request-{number}-{side}")
            for side in ("left", "right")
        ]
        turn = Turn(f"turn-{number}", f"session-{number % VOTERS}", ({"role": "user", "content": task.prompt},))
        sides = (VoteSide(receipts[0], left, None, "left"), VoteSide(receipts[1], right, None, "right"))
        choice = choice_of(left, right)
        voter = journal.voter(f"voter-{seed}-{number % VOTERS}")
        journal.cast(CastVote(turn, sides, choice, voter, cast_at=now + timedelta(seconds=number)))
        counts[choice] += 1
    Mirror(journal).flush()
    return counts


# figures ---------------------------------------------------------------------------------------------------------------


def figures(said: Sequence[str], rival: Sequence[str], asked: Sequence[Task]) -> dict[str, tuple[float, float, float]]:
    wins = [0.5 if likes(a) == likes(b) else float(likes(a)) for a, b in zip(said, rival, strict=True)]
    return {
        "win rate": mean_interval(wins),
        "to the taste": wilson([likes(answer) for answer in said]),
        "right word": wilson([answer.rstrip(".!") == task.word for answer, task in zip(said, asked, strict=True)]),
    }


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and its 95 % interval by the normal distribution."""
    mean = float(np.mean(values))
    reach = 1.96 * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, mean - reach, mean + reach


def wilson(hits: Sequence[bool]) -> tuple[float, float, float]:
    """Return the share of hits and its 95 % interval by Wilson."""
    n, share, z = len(hits), sum(hits) / len(hits), 1.96
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return share, centre - reach, centre + reach


def print_table(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    counts = ", ".join(f"{count} {choice}" for choice, count in result["choices"].items())
    print(f"Votes: {counts}. Seconds: imitation {result['imitation_s']:.0f}, DPO {result['preference_s']:.0f}.\n")
    names = list(result["sides"]["1"])
    print(f"| version | {' | '.join(names)} |")
    print(f"|---|{'---|' * len(names)}")
    for version, what in (("1", "voted on (imitation)"), ("2", "after DPO on the votes")):
        cells = [f"{v:.3f} ({low:.3f}..{high:.3f})" for v, low, high in result["sides"][version].values()]
        print(f"| {version}, {what} | {' | '.join(cells)} |")
    print()
    for prompt, before, after in result["samples"]:
        print(f"- {prompt!r}: {before!r} -> {after!r}")


if __name__ == "__main__":
    main()
