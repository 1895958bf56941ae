"""A canary that is killed with SIGKILL before each change that it makes to the registry: what is left, and is it mended?

    python benchmarks/canary_kills.py

Twice: one that widens and is promoted, one whose answers fail and that is put back. After each kill the split must name no
alias that is not there; after the next call all must be as before, or the move complete and recorded once. Exits 1 else.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

from canary_processes import faults_after_settling, faults_left_by_kill, kill_canary, prepare

COURSES = {"promoted": 0.0, "put back": 0.6}


def main() -> int:
    folder, began = Path(tempfile.mkdtemp()), time.monotonic()
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    client, faults = MlflowClient(uri), 0
    print(f"{datetime.now(UTC):%Y-%m-%d}, 2 cores, SQLite")
    try:
        for course, fails in COURSES.items():
            kills, moved, at = 0, 0, 0
            was_killed = True
            while was_killed:
                at += 1
                name = f"bot-{fails:g}-{at}"
                prepare(client, name)
                was_killed = kill_canary(uri, at, name, fails=fails)
                kill_faults = faults_left_by_kill(client, name) + faults_after_settling(client, name)
                kills, faults = kills + was_killed, faults + len(kill_faults)
                moved += was_killed and str(client.get_registered_model(name).aliases["champion"]) == "2"
                for fault in kill_faults:
                    print(f"  {course}, killed before change {at}: {fault}")
            print(f"  {course:10} killed before each of {kills} changes; champion afterwards the candidate in {moved}")
    finally:
        shutil.rmtree(folder)
    print(f"  faults     {faults}\n  seconds    {time.monotonic() - began:.0f}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
