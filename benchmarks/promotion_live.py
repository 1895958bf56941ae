"""Three versions of a real model judged and promoted under live traffic, one of them refused, then rolled back.

    python benchmarks/promotion_live.py BANKING77 BASE [--engine transformers|vllm] [--out DIR]

BANKING77 is the folder with train.csv.gz and test.csv, BASE a folder with a model for it. By the commands that a user has, each a
process: `mlflow run` trains an under-trained version, an honest one, and one on the held-out rows in other words, which no hash
shows; `mlflow-finetune serve` serves them; while clients keep asking, `promote` judges each, then `rollback` and `history`.
Ends with 1 when a verdict, an answer or a receipt is not what it has to be; each fault is printed. DIR gets reports and decisions.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banking_intents import INTENTS, Rows, banking_rows, reworded
from trained_versions import MODEL, TOKENS, Kind, Version, finetune, trained

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

POLL_S = 1.0


@dataclass(frozen=True)
class Judged:
    version: Version
    exit_code: int
    took_s: float
    output: str
    decision: dict[str, Any]

    def finding(self, name: str) -> dict[str, Any]:
        return next(finding for finding in self.decision["verdict"]["findings"] if finding["name"].startswith(name))


def judge(version: Version, url: str, out: Path) -> Judged:
    from mlflow import MlflowClient

    code, took_s, output = finetune("promote", MODEL, "--version", version.number, "--endpoint", f"{url}/v1")
    print(f"\n$ mlflow-finetune promote {MODEL} --version {version.number} --endpoint {url}/v1      # exit code {code}")
    print(output.rstrip())
    match = re.search(r"report +run (\w+)", output)
    if match is None:
        raise SystemExit(f"version {version.number}: no decision was made")
    for file, suffix in (("verdict.json", "json"), ("report.html", "html")):
        path = MlflowClient().download_artifacts(match[1], file, str(out))
        Path(path).rename(out / f"{version.number}-{version.kind.name}.{suffix}")
    decision = json.loads((out / f"{version.number}-{version.kind.name}.json").read_text())
    return Judged(version, code, took_s, output, decision)


def story(versions: list[Version], rows: Rows, options: argparse.Namespace, out: Path) -> list[str]:
    """Serves, judges and rolls back under traffic, prints all of it, and returns the faults."""
    from live_traffic import figures, live_traffic, say_all
    from mlflow import MlflowClient, get_tracking_uri
    from serving_process import serving

    questions = [row["prompt"] for row in rows.live]
    serve = ("--engine", options.engine, "--poll", str(POLL_S))
    with serving(Path.cwd(), get_tracking_uri(), MODEL, *serve) as service:
        answers = say_all(service.url, MODEL, [version.number for version in versions], questions, TOKENS)
        begun = time.perf_counter()
        with live_traffic(
            service.url, MlflowClient(), MODEL, questions, clients=options.clients, pause_s=options.pause, tokens=TOKENS
        ) as traffic:
            time.sleep(options.between)
            judged = []
            for version in versions:
                judged.append(judge(version, service.url, out))
                time.sleep(options.between)
            rolled_back, _, output = finetune("rollback", MODEL, "--reason", "to see it work")
            print(
                f"\n$ mlflow-finetune rollback {MODEL} --reason 'to see it work'      # exit code {rolled_back}\n{output}"
            )
            time.sleep(options.between)
        seconds = time.perf_counter() - begun
        (out / "serving.log").write_bytes(service.log.read_bytes())
    code, _, output = finetune("history", MODEL)
    print(f"$ mlflow-finetune history {MODEL}      # exit code {code}\n{output}")
    digests = {version.number: version.digest for version in versions}
    counts, faults = figures(traffic, answers, digests, POLL_S + 1)
    print_versions(judged, answers, rows)
    print_traffic(traffic, counts, seconds, options)
    faults += [f"rollback ended with {rolled_back}"] if rolled_back else []
    return [*faults, *story_faults(judged, [move.version for move in traffic.moves], traffic)]


def print_versions(judged: list[Judged], answers: dict[tuple[str, int], Any], rows: Rows) -> None:
    print(
        "| version | trained on | steps | train s | whole run s | leaks that the data report counts | held-out | must-pass | "
        "live questions | forgetting, nats | gain [95 %] | p95 ms | verdict | exit code | seconds to judge |"
    )
    print("|---" * 15 + "|")
    for entry in judged:
        version, metrics = entry.version, entry.version.metrics
        gain, slow = entry.finding("gain"), entry.finding("latency")
        right = [answers[version.number, i].text.strip() == row["completion"] for i, row in enumerate(rows.live)]
        print(
            f"| {version.number} | {version.kind.name}, {len(version.kind.rows):,} rows | {version.kind.steps} | "
            f"{metrics['train/seconds']:.0f} | {version.run_s:.0f} | {version.leaks_found} | "
            f"{metrics['eval/adapter/exact_match']:.3f} | {entry.finding('must-pass')['details']['score']:.3f} | "
            f"{sum(right) / len(right):.3f} | {entry.finding('forgetting')['estimate']:+.2f} | "
            f"{gain['estimate']:+.3f} [{gain['interval'][0]:+.3f}, {gain['interval'][1]:+.3f}] | "
            f"{slow['details']['candidate_p95_ms']:.0f} | {entry.decision['verdict']['outcome']} | {entry.exit_code} | {entry.took_s:.0f} |"
        )


def print_traffic(traffic: Any, counts: dict[str, int | float], seconds: float, options: argparse.Namespace) -> None:
    print(f"\n{options.clients} clients for {seconds:.0f} s, engine {options.engine}:")
    for name in sorted(counts, key=lambda name: (name != "requests", name)):
        value = counts[name]
        print(f"  {name:<34} {value:,.0f}")
    for old, new in zip(traffic.moves, traffic.moves[1:], strict=False):
        first = traffic.first_by(new)
        took = "no answer" if first is None else f"first answer after {first - new.before:.2f} s"
        print(f"  champion {old.version or 'none'} -> {new.version}: {took} (at most {POLL_S + 1:g})")


def story_faults(judged: list[Judged], moved: list[str | None], traffic: Any) -> list[str]:
    """What is not as the three versions deserve."""
    faults = [
        f"version {entry.version.number}, {entry.version.kind.name}: exit code {entry.exit_code}, not {entry.version.kind.exit_code}"
        for entry in judged
        if entry.exit_code != entry.version.kind.exit_code
    ]
    leaked = judged[-1].decision["verdict"]["findings"]
    rejects = [entry["name"] for entry in leaked if entry["outcome"] == "reject"]
    if rejects != ["must-pass must-pass.jsonl, exact_match"]:
        faults.append(f"the leaked version was refused for {rejects}, not for the must-pass file alone")
    if judged[-1].finding("gain")["outcome"] != "pass":
        faults.append("the leaked version's gain did not pass, so its leak was no temptation")
    first, second, _ = (entry.version.number for entry in judged)
    if moved != [None, first, second, first]:
        faults.append(f"the champion was {moved}, not {[None, first, second, first]}")
    for move in traffic.moves[1:]:
        answered = traffic.first_by(move)
        if answered is None or answered - move.before > POLL_S + 1:
            faults.append(f"version {move.version} did not answer for the champion within {POLL_S + 1:g} s of its move")
    return faults


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("banking77", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm"))
    parser.add_argument("--out", type=Path, default=None, help="gets reports, decisions and the router's log")
    parser.add_argument(
        "--store", type=Path, default=None, help="keeps what was trained, to be judged by further calls"
    )
    parser.add_argument("--steps", type=int, nargs=3, default=(150, 700, 500), metavar=("UNDER", "HONEST", "LEAKED"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forgetting", type=float, default=6.0, help="the policy's bound, nats per token")
    parser.add_argument("--p95-ms", type=float, default=3000.0, help="the policy's bound")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--pause", type=float, default=0.4, help="seconds between an answer and the next request")
    parser.add_argument("--between", type=float, default=8.0, help="seconds of traffic between two commands")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    out = (options.out or Path(tempfile.mkdtemp())).resolve()
    out.mkdir(parents=True, exist_ok=True)
    rows = banking_rows(options.banking77)
    options.base = options.base.resolve()
    under, honest, leaked = options.steps
    kinds = [
        Kind("under-trained", under, rows.train, 0.3, 0),  # a first version has to be of some use; later ones of more
        Kind("honest", honest, rows.train, 0.7, 0),
        Kind("leaked", leaked, [form for row in rows.held_out for form in reworded(row)], 0.7, 4),
    ]
    print(
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {len(INTENTS)} intents: {len(rows.train):,} train, "
        f"{len(rows.held_out)} held-out, {len(rows.must_pass)} must-pass, {len(rows.live)} live questions"
    )
    with tempfile.TemporaryDirectory() as scratch:
        store = (options.store or Path(scratch)).resolve()
        store.mkdir(parents=True, exist_ok=True)
        os.environ |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{store}/mlflow.db",
            "MLFLOW_FINETUNE_HOME": f"{store}/home",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
            "HF_HUB_OFFLINE": "1",
        }
        os.chdir(store)
        versions = trained(store, kinds, rows, options)
        faults = story(versions, rows, options, out)
    print(*(f"FAULT {fault}" for fault in faults[:20]), sep="\n")
    print(f"faults: {len(faults)}; reports, decisions and the router's log: {out}")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
