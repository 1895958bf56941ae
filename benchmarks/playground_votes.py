"""People's votes on real models, from the browser to the gate: cast blind, kept in MLflow, counted, exported, weighed.

    python benchmarks/playground_votes.py --banking77 FOLDER --base FOLDER [--engine vllm] [--store DIR] [--out DIR]

FOLDER is banking77 with train.csv.gz and test.csv, and a model to train on it. The quickstart and some intents of banking77
are trained by `mlflow run` (or were, in --store), both served by one `mlflow-finetune serve`, and judged in Chromium by three
people with a login each, by what the reference answer says: for the side that answers so, a tie where both do, both bad where
neither does. Then the commands that a user has show what became of the votes. Prints Markdown for results/playground.md, ends
with 1 where a vote is missing; screenshots go to --out. `--models quickstart --engine transformers` is quick.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from chromium import chromium
from playground_browser import Person
from playground_models import MODELS, Taught, plain, references, trained
from playground_page import machine, page_process
from serving_process import serving

from mlflow_finetune_plugin.credentials.users import add_user

PASSWORD = "correct horse battery"
_DRAWN_S = 8.0
"""In which votes reach the standings, and charts are drawn."""
PEOPLE = ("ada", "grace", "edsger")


@dataclass
class Judged:
    """What the script saw and did. ``right``: how often each side's name, once shown, had answered as the reference."""

    model: str
    choices: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    revealed: list[str] = field(default_factory=list)
    took_s: float = 0.0
    standings: dict[str, Any] = field(default_factory=dict)


def choice_by(reference: str, answers: list[str]) -> str:
    left, right = (answer == reference for answer in answers)
    return {(True, False): "left", (False, True): "right", (True, True): "tie"}.get((left, right), "both_bad")


def judge(browser: Any, url: str, taught: Taught, expected: dict[str, str], votes: int, out: Path) -> Judged:
    """``votes`` by each person, every other one by key; names are shown after each person's last vote."""
    judged, started = Judged(taught.name), time.perf_counter()
    for name in PEOPLE:
        person = Person(browser, url)
        person.log_in(name, PASSWORD)
        person.wait_until_usable()
        person.limit_tokens(taught.longest)
        person.unfold("Prompt set")
        for number in range(votes):
            person.ask_next()
            if judged.turns == 0:
                person.picture(out / f"{taught.name}-asked.png")
            choice = choice_by(expected[plain(person.prompt)], person.answers)
            person.vote(choice, by_key=number % 2 == 1)
            judged.choices[choice] += 1
            judged.turns += 1
        judged.revealed.append(" ".join(person.show_names().split()))
        person.picture(out / f"{taught.name}-{name}.png", full_page=True)
        if name == PEOPLE[-1]:
            person.open_tab("Standings")
            time.sleep(_DRAWN_S)
            person.picture(out / f"{taught.name}-standings.png", full_page=True)
        person.leave()
    judged.took_s = time.perf_counter() - started
    return judged


def standings(url: str) -> dict[str, Any]:
    """As the API tells them to programs."""
    from gradio_client import Client

    return dict(Client(url, auth=(PEOPLE[0], PASSWORD), verbose=False).predict(api_name="/standings"))


def in_mlflow() -> Counter[str]:
    """Traces with a person's vote, and votes on them, as MLflow keeps them; a base's traces name no registered model."""
    import mlflow

    client, counts = mlflow.MlflowClient(), Counter({"traces": 0, "votes": 0})
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    for trace in client.search_traces(locations=experiments, max_results=500):
        votes = [entry for entry in trace.info.assessments if entry.source.source_type == "HUMAN"]
        counts += Counter(traces=bool(votes), votes=len(votes))
    return counts


def own_base(model: str) -> str:
    """What the router calls the base of version 1: where it serves several bases, none of them is just `base`."""
    import mlflow

    from mlflow_finetune_plugin.serving.engines.fleet import base_name

    run_id = mlflow.MlflowClient().get_model_version(model, "1").run_id
    return base_name(str(mlflow.MlflowClient().get_run(run_id).data.params["base_model"]))


def command(*arguments: str) -> str:
    """As a user sees it: the command, its exit code, what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_finetune_plugin.cli", *arguments], capture_output=True, text=True, check=False
    )
    lines = [
        line for line in (done.stdout + done.stderr).splitlines() if " INFO " not in line and "Warning" not in line
    ]
    return f"$ mlflow-finetune {' '.join(arguments)}      # exit code {done.returncode}\n" + "\n".join(lines)


def aftermath(judged: Judged, before: Counter[str], out: Path) -> list[str]:
    """Markdown on what became of the votes, and what is wrong with it."""
    export = out / f"{judged.model}-preferences.jsonl"
    votes = command("votes", judged.model, "--between", "1", "base", "--export", str(export))
    rows = export.read_text(encoding="utf-8").splitlines() if export.exists() else []
    after = in_mlflow()
    traces, feedback = (after[name] - before[name] for name in ("traces", "votes"))
    pair = next(iter(judged.standings["pairs"]), None)
    people = pair["people"] if pair is not None else {}
    figures = {
        key: people.get(key) for key in ("votes", "candidate_wins", "champion_wins", "ties", "both_bad", "voters")
    }
    print(f"\n## {judged.model}\n")
    print(f"- **{judged.turns} blind votes** of {len(PEOPLE)} people in {judged.took_s:.0f} s: {dict(judged.choices)}.")
    print(f"- Names, once shown: {' / '.join(judged.revealed)}")
    print(f"- **MLflow**: {feedback} pieces of people's feedback on {traces} traces.")
    print(
        f"- **Standings** (API): {judged.standings['votes']} votes, {judged.standings['counted']} counted; {figures}."
    )
    print(f"- **Exported**: {len(rows)} preference rows for DPO. The first: `{rows[0] if rows else 'none'}`")
    print(f"\n```\n{votes.replace(str(out) + '/', '')}\n\n{command('promote', judged.model, '--dry-run')}\n```")
    faults = []
    if judged.standings["counted"] != judged.turns:
        faults.append(f"{judged.model}: {judged.standings['counted']} of {judged.turns} votes count in the standings")
    if traces != 2 * judged.turns:
        faults.append(f"{judged.model}: {traces} of {2 * judged.turns} traces have feedback")
    decided = judged.choices["left"] + judged.choices["right"]
    if len(rows) > decided or (decided and not rows):
        faults.append(f"{judged.model}: {len(rows)} rows were exported of {decided} decided votes")
    return faults


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [model.name for model in MODELS]
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--banking77", type=Path, default=None)
    parser.add_argument("--base", type=Path, default=None, help="that banking77 is trained on")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--votes", type=int, default=5, help="of each of the three people, on each model")
    parser.add_argument("--steps", type=int, default=700, help="of the training on banking77")
    parser.add_argument("--store", type=Path, default=None, help="keeps what was trained, for further calls")
    parser.add_argument("--out", type=Path, default=None, help="gets screenshots and exports")
    return parser.parse_args()


def main() -> None:
    options, machine_text = parsed(), machine()
    out = (options.out or Path(tempfile.mkdtemp())).resolve()
    store = (options.store or Path(tempfile.mkdtemp())).resolve()
    for folder in (out, store):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
        "MLFLOW_FINETUNE_HOME": f"{store}/home",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "HF_HUB_OFFLINE": "1",
    }
    banking77, base = (path.resolve() if path else None for path in (options.banking77, options.base))
    os.chdir(store)
    trained(store, options.models, banking77, base, options.steps)
    print(f"{machine_text}; engine {options.engine}")
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, chromium() as opened:
        users = Path(scratch) / "users.yaml"
        for name in PEOPLE:
            add_user(users, name, PASSWORD)
        uri = os.environ["MLFLOW_TRACKING_URI"]
        with serving(Path(scratch), uri, *options.models, "--engine", options.engine) as service:
            for taught in (model for model in MODELS if model.name in options.models):
                held_out = next(p for p in (store / taught.name).rglob("*.jsonl") if p.stem in ("test", "held-out"))
                arguments = ["--endpoint", f"{service.url}/v1", "--model", taught.name, "--auth-file", str(users)]
                arguments += [
                    "--side",
                    f"{taught.name}@challenger",
                    "--side",
                    own_base(taught.name),
                    "--live-standings",
                ]
                before = in_mlflow()
                with page_process(Path(scratch), *arguments) as app:
                    judged = judge(opened, app.url, taught, references(held_out), options.votes, out)
                    judged.standings = standings(app.url)
                faults += aftermath(judged, before, out)
    print(*(f"FAULT {fault}" for fault in faults), sep="\n")
    print(f"\nfaults: {len(faults)}; screenshots: {len(list(out.glob('*.png')))}")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
