"""Check whether this machine can train, and end runs whose processes died here unnoticed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import FinetuneError, TrackingError, one_line, without_secrets
from mlflow_finetune_plugin.jobs.folder import jobs_home
from mlflow_finetune_plugin.jobs.gpus import visible_gpus
from mlflow_finetune_plugin.jobs.orphans import is_unfinished, orphans
from mlflow_finetune_plugin.jobs.supervisor import start_supervisor
from mlflow_finetune_plugin.jobs.versions import (
    REQUIRED_FOR_TRAINING,
    PackageVersion,
    installed_version,
    is_below,
    package_versions,
    untested_fix,
)
from mlflow_finetune_plugin.threads import allowed_cores

SECURITY_FLOORS = {
    "vllm": ((0, 33), "GHSA-5r3c-5x4v-8gjh and older"),
    "gradio": ((6, 22), "CVE-2026-59806, CVE-2026-49119 and older"),
}
"""Optional packages, the first release without known advisories, and the advisories of the releases before it."""

_REAP_PATIENCE_S = 60.0
_DEVICE_CODE = (
    "import torch; print(torch.__version__, torch.version.cuda or torch.version.hip or 'cpu', torch.cuda.device_count(), "
    "torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
)


@dataclass(frozen=True)
class HealthCheck:
    """One line of the examination: what was checked, and the fix when it is not good."""

    is_good: bool
    text: str


def examine(*, reap: bool) -> Iterator[HealthCheck]:
    """Check packages, device, job folders and tracking server, one after the other.

    Args:
        reap: End the runs whose processes died. Otherwise they are only listed.
    """
    yield from _packages()
    yield _device()
    yield from _jobs(reap=reap)
    yield from _tracking(reap=reap)


def _packages() -> Iterator[HealthCheck]:
    versions = {package.name: package for package in package_versions()}
    for package in versions.values():
        if package.installed is not None:
            yield HealthCheck(True, _version_text(package))
        elif package.name in REQUIRED_FOR_TRAINING:
            yield HealthCheck(False, f"{package.name} is not installed; fix: pip install 'mlflow-finetune[train]'")
    untested = [package for package in versions.values() if package.installed and not package.is_tested]
    if untested:
        names = " and ".join(package.name for package in untested)
        yield HealthCheck(
            True, f"{names}: never tested with the other packages; if a run fails, {untested_fix(untested)}"
        )
    for name, (floor, advisories) in SECURITY_FLOORS.items():
        package = versions.get(name) or PackageVersion(name, installed_version(name), "")
        if package.installed is not None and is_below(package.installed, floor):
            least = ".".join(map(str, floor))
            yield HealthCheck(
                False,
                f"{name} {package.installed} has known security advisories ({advisories}); fix: pip install '{name}>={least}'",
            )


def _version_text(package: PackageVersion) -> str:
    return f"{package.name} {package.installed}" + (
        "" if package.is_tested else f" (tested: {package.tested or 'none'})"
    )


def _device() -> HealthCheck:
    """Ask torch in another process: importing it here would delay every other check by seconds."""
    answer = subprocess.run([sys.executable, "-c", _DEVICE_CODE], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        lines = answer.stderr.strip().splitlines() or ["no message"]
        return HealthCheck(False, f"torch cannot be imported: {lines[-1]}; fix: pip install 'mlflow-finetune[train]'")
    version, build, count, name = (*answer.stdout.strip().split(" ", 3), "")[:4]
    return device_check(version, build, int(count), name, has_gpu=_has_gpu(), cores=allowed_cores())


def device_check(version: str, build: str, gpus: int, gpu_name: str, *, has_gpu: bool, cores: int) -> HealthCheck:
    """Return whether torch fits the machine.

    Args:
        version: Version of torch.
        build: The CUDA or ROCm version that torch was built for, or ``cpu``.
        gpus: GPUs that torch can use.
        gpu_name: Name of the first of them.
        has_gpu: Whether the driver lists a GPU.
        cores: CPU cores that a run may use.
    """
    if gpus:
        return HealthCheck(True, f"trains on: {gpu_name}, {gpus} visible")
    if has_gpu:
        why = (
            "was built without GPU support"
            if build == "cpu"
            else f"was built for CUDA {build}, which the driver refuses"
        )
        return HealthCheck(
            False,
            f"a GPU is visible, but torch {version} {why}; fix: reinstall torch with pip's --index-url option and the address "
            "of PyTorch's wheels for your CUDA version, or uv pip install --torch-backend=auto torch",
        )
    text = f"trains on: the CPU, {cores} core{'s' if cores > 1 else ''}"
    if build != "cpu":
        text += (
            f"; torch {version} is a GPU build, a CPU build is several GB smaller: reinstall torch with pip's --index-url "
            "option and the address of PyTorch's CPU wheels, or uv pip install --torch-backend=cpu torch"
        )
    return HealthCheck(True, text)


def _has_gpu() -> bool:
    try:
        return bool(visible_gpus())
    except FinetuneError:
        return False


def _jobs(*, reap: bool) -> Iterator[HealthCheck]:
    abandoned = orphans()
    if not abandoned:
        yield HealthCheck(True, f"no run left behind in {jobs_home()}")
    for folder in abandoned:
        run_id = (folder.read("run") or {})["run_id"]
        if not reap:
            yield HealthCheck(False, f"run {run_id}: its supervisor died; fix: mlflow-finetune doctor --reap")
            continue
        start_supervisor(folder, adopt=True)
        deadline = time.monotonic() + _REAP_PATIENCE_S
        while is_unfinished(folder) and time.monotonic() < deadline:
            time.sleep(0.2)
        outcome = folder.read("outcome")
        is_recorded = outcome is not None and outcome["recorded"]
        status = f"{outcome['status']}: {outcome['reason']}" if outcome else "a new supervisor watches its worker"
        yield HealthCheck(is_recorded, f"run {run_id}: {status}")


def _tracking(*, reap: bool) -> Iterator[HealthCheck]:
    from mlflow_finetune_plugin.jobs.run_record import reap_expired
    from mlflow_finetune_plugin.store.clients import (
        check_store_answers,
        check_store_exists,
        client_for,
        current_tracking_uri,
    )

    uri = current_tracking_uri()
    name = f"tracking server {without_secrets(uri)}"
    try:
        check_store_exists(uri)
    except TrackingError:
        yield HealthCheck(True, f"{name}: does not exist yet; the first run creates it")
        return
    try:
        check_store_answers(uri)
        client = client_for(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        expired = reap_expired(client, experiments, now_s=time.time(), act=reap)
    except Exception as error:  # a tracking store raises errors of many kinds
        yield HealthCheck(False, f"{name}: {one_line(error)}")
        return
    if not expired:
        yield HealthCheck(True, f"{name}: no run without a sign of life")
    for run_id, reason in expired:
        yield HealthCheck(
            reap, f"run {run_id}: {reason}; " + ("marked FAILED" if reap else "fix: mlflow-finetune doctor --reap")
        )
