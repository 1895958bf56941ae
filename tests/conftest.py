"""Shared ground of the tests: real data folders, a fresh MLflow store per test, and the real commands as processes."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from forked import fork_what_tests_start, run_module, start_module
from tiers import mark_by_fixtures, without_processes

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared" / "data"
ROWS = [{"prompt": f"say {number}", "completion": f"{number}"} for number in range(20)]

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # tiny models gain nothing from more, and lose all on cores that others use

fork_what_tests_start()

LONGEST_FIRST = (
    "test_whole_path.py",
    "adaptations/test_peft_whole_path.py",
    "test_virtual_token_paths.py",
    "serving/test_service_faults.py",
    "test_recipes.py",
    "serving/test_vllm_service.py",
    "test_pipeline.py",
    "test_rlhf.py",
    "test_reinforcement.py",
    "gradio_app/pages/test_browser_vote_training.py",
    "objectives/test_reward_model.py",
    "objectives/test_reward_run.py",
    "stages/test_start.py",
    "stages/test_start_command.py",
    "cli/compare/test_playground.py",
    "serving/test_deployments.py",
    "stages/test_resume.py",
    "gradio_app/pages/test_browser_served.py",
    "jobs/test_supervisor.py",
    "test_worker.py",
    "promotion/moves/test_kill_points.py",
    "submission/test_handing_over.py",
    "promotion/test_trained_versions.py",
    "adaptations/test_contract.py",
    "serving/test_seeded_faults.py",
    "training/rollouts/test_trainer.py",
    "stages/test_votes_command.py",
    "training/test_pairs.py",
    "training/test_trainer.py",
    "adaptations/test_lora.py",
    "training/test_processes.py",
    "training/test_packing.py",
    "rewards/process/test_hostile.py",
    "votes/mlflow/test_mirror.py",
    "stages/test_evaluate.py",
    "gradio_app/pages/test_runs.py",
    "gradio_app/pages/test_standings.py",
    "serving/engines/test_tied_weights.py",
    "api/test_api.py",
    "promotion/moves/test_concurrency.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import without garbage collections, and leave what is imported out of later ones, which would take 0.4 s each."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes take whole files: the longest first, or one of them is alone with such a file at the end."""
    mark_by_fixtures(items)
    places = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with without_processes(item):
        return (yield)


@pytest.fixture(scope="module", autouse=True)
def stores_of_this_file() -> Iterator[None]:
    """A store that one file's tests named with ``mlflow.set_tracking_uri`` is not that of the next file."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow.tracking._tracking_service.utils" not in sys.modules:
        return
    sys.modules["mlflow.tracking._tracking_service.utils"]._tracking_uri = None  # type: ignore[attr-defined]
    if before is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    else:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the shared data folder is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow SQLite store with its tables made once; tests copy it."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path.parent)  # the artifacts of the default experiment lie in the working directory
        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@dataclass
class Workplace:
    """A folder with its own MLflow store and its own job folders, and the commands a user has."""

    path: Path
    tracking_uri: str
    environment: dict[str, str]

    @property
    def home(self) -> Path:
        return Path(self.environment["MLFLOW_FINETUNE_HOME"])

    def start(self, arguments: Sequence[str], **more: str) -> subprocess.Popen[str]:
        """A command in a process group of its own, so that a test can send it what a terminal would."""
        return start_module(
            arguments[0],
            arguments[1:],
            cwd=self.path,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, arguments: Sequence[str], timeout_s: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        return run_module(
            arguments[0],
            arguments[1:],
            cwd=self.path,
            env={**self.environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )

    def mlflow_run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(["mlflow", "run", *arguments, "-b", "finetune"], **more)

    def start_mlflow_run(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return self.start(["mlflow", "run", *arguments, "-b", "finetune"], **more)

    def finetune_run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The same without MLflow's own command, which takes three seconds more to start."""
        return self.cli("run", *arguments, **more)

    def start_finetune_run(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        return self.start(["mlflow_finetune_plugin.cli", "run", *arguments], **more)

    def cli(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.run(["mlflow_finetune_plugin.cli", *arguments], **more)

    def job(self, timeout_s: float = 60) -> Path:
        """The newest job folder, once its worker runs."""

        def newest() -> Path | None:
            folders = sorted((self.home / "jobs").iterdir()) if (self.home / "jobs").is_dir() else []
            return (
                folders[-1]
                if folders and (folders[-1] / "state.json").exists() and (folders[-1] / "run.json").exists()
                else None
            )

        return wait_for(newest, timeout_s, "a job with a worker and a run")

    def client(self):  # type: ignore[no-untyped-def]
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri)

    def runs(self):  # type: ignore[no-untyped-def]
        """All runs of the store, whatever their experiment, besides the records of promotions."""
        client = self.client()
        experiments = [each for each in client.search_experiments() if not each.name.endswith(".promotions")]
        return list(client.search_runs([experiment.experiment_id for experiment in experiments]))

    def only_run(self):  # type: ignore[no-untyped-def]
        runs = self.runs()
        assert len(runs) == 1, [run.info.run_id for run in runs]
        return runs[0]

    def ended_run(self, timeout_s: float = 60):  # type: ignore[no-untyped-def]
        """The only run, once it no longer says RUNNING."""

        def ended():  # type: ignore[no-untyped-def]
            run = self.only_run()
            return run if run.info.status != "RUNNING" else None

        return wait_for(ended, timeout_s, "the run's last word")


def wait_for(probe, timeout_s: float, what: str):  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"no {what} within {timeout_s} s")
        time.sleep(0.1)


def pids(job: Path) -> dict[str, int]:
    state = json.loads((job / "state.json").read_text())
    return {name: value["pid"] for name, value in state.items() if value}


def is_alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def workplace(tmp_path: Path, empty_store: Path) -> Iterator[Workplace]:
    store = tmp_path / "mlflow.db"
    shutil.copy(empty_store, store)
    place = make_workplace(tmp_path, f"sqlite:///{store}")
    yield place
    stop_jobs(place)


@pytest.fixture
def desk(workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """The workplace as this process's own: its store, its job folders, its directory, with good data in it."""
    for name in ("MLFLOW_FINETUNE_HOME", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, workplace.environment[name])
    # A store or registry that an earlier test of this process named would receive this test's versions.
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    monkeypatch.setattr("mlflow.tracking._model_registry.utils._registry_uri", None)
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
    monkeypatch.chdir(workplace.path)
    write_rows(workplace.path / "train.jsonl", ROWS)
    return workplace


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_workplace(path: Path, tracking_uri: str) -> Workplace:
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_FINETUNE_HOME": str(path / "home"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return Workplace(path, tracking_uri, environment)


def stop_jobs(place: Workplace) -> None:
    """Nothing that a test started outlives it."""
    jobs = place.home / "jobs"
    for state in jobs.glob("*/state.json") if jobs.is_dir() else []:
        for pid in reversed(pids(state.parent).values()):
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        (state.parent / "job.json").unlink(missing_ok=True)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path, empty_store: Path) -> Iterator[Server]:
    found = Server(tmp_path, empty_store)
    found.start()
    yield found
    found.stop()


NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""Evaluations that MLflow's server runs by itself: a process for each kind of job, which nothing here asks for."""


class Server:
    """A real ``mlflow server`` on loopback that can go and come back."""

    def __init__(self, path: Path, empty_store: Path) -> None:
        self.path = path
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        shutil.copy(empty_store, path / "server.db")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.path / 'server.db'}"
        command = [
            "server",
            "--backend-store-uri",
            store,
            "--port",
            str(self.port),
            "--workers",
            "1",
        ]
        log = (self.path / "server.log").open("ab")
        self._process = start_module(
            "mlflow",
            [*command, "--artifacts-destination", str(self.path / "artifacts")],
            cwd=self.path,
            env={**os.environ, **NO_JOBS},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        wait_for(self._answers, 90, "tracking server")

    def _answers(self) -> bool:
        import urllib.request

        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def own_project(tmp_path: Path) -> Callable[[str], Path]:
    """A project whose MLproject runs a command of its own: the life cycle without the seconds of torch."""

    def make(command: str) -> Path:
        folder = tmp_path / "own"
        folder.mkdir(exist_ok=True)
        (folder / "MLproject").write_text(f"name: own\nentry_points:\n  main:\n    command: {json.dumps(command)}\n")
        return folder

    return make
