"""Resume a run: find its last whole checkpoint, on this disk or in its artifacts, and report what has changed since."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.jobs.folder import JobFolder
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.jobs.run_record import param_text
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.rewards import rewards_digest
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.store.names import CHECKPOINTS_FOLDER, DRIFT_TAG, RECORDS_FOLDER
from mlflow_finetune_plugin.training.checkpoints import (
    MANIFEST,
    Checkpoint,
    TornCheckpointError,
    in_folder,
    newest_whole,
    opened,
)

FOLDER = "checkpoints"


def fingerprint(plan: Plan, data: PreparedData, base_digest: str) -> dict[str, Any]:
    """Return what must not change between attempts for a checkpoint to be of use. Everything else may change."""
    config, training = plan.config, plan.config.training
    values = {
        "base model": base_digest,
        "precision": plan.base.precision,
        "training data": data.digest,
        "held-out data": data.eval_digest,
        "data.mixing": [config.data.mixing, config.data.mixing_temperature],
        "start_from (digest of its adapter)": None if plan.start is None else plan.start.digest,
        "adaptation": config.adaptation,
        "objective": config.objective,
        "options": plan.options,
        "rewards (digest of settings and files)": rewards_digest(plan.rewards) if plan.rewards else None,
        "training.seed": training.seed,
        "rows a step": plan.rows_a_step,
        "optimiser": [
            training.optim,
            training.adam_beta1,
            training.adam_beta2,
            training.adam_epsilon,
            training.weight_decay,
        ],
    }
    return json.loads(json.dumps(values))  # type: ignore[no-any-return]  # as a manifest returns it


def check_same(checkpoint: Checkpoint, now: Mapping[str, Any]) -> None:
    """Raise ConfigError with everything that has changed since the checkpoint."""
    before = checkpoint.fingerprint
    changed = [
        leaf for name in now if before.get(name) != now[name] for leaf in _leaves(name, before.get(name), now[name])
    ]
    if changed:
        raise ConfigError(
            [
                f"-P resume: {name} was {_short(was)} and is {_short(is_now)}; fix: the same as before, or a new run"
                for name, was, is_now in changed
            ]
        )


def check_not_past(checkpoint: Checkpoint, steps: int) -> None:
    """Raise ConfigError when the checkpoint is after the last step of the training that is requested now."""
    if checkpoint.step > steps:
        raise ConfigError(
            [
                f"-P resume: the run's checkpoint is after step {checkpoint.step:,}, and this asks for {steps:,} steps in all; "
                "fix: more of training.num_train_epochs or max_steps, or a new run"
            ]
        )


def _leaves(name: str, was: Any, is_now: Any) -> list[tuple[str, Any, Any]]:
    """Return what differs within a section; the whole value where it is not a section."""
    if not (isinstance(was, Mapping) and isinstance(is_now, Mapping)):
        return [(name, was, is_now)]
    both = {**was, **is_now}
    return [(f"{name}.{key}", was.get(key), is_now.get(key)) for key in both if was.get(key) != is_now.get(key)]


def find_checkpoint(run_id: str, tracking_uri: str, folder: Path, report: Report) -> Checkpoint | None:
    """Return the run's furthest whole checkpoint, of its attempts on this disk or its artifacts; None when there is none."""
    here = [path for job in JobFolder.all() if _is_of(job, run_id) for path in in_folder(job.work / FOLDER)]
    local = newest_whole(here, _note_torn(report))
    stored = _from_artifacts(run_id, tracking_uri, folder / "downloaded", local.step if local else -1, report)
    checkpoint = stored or local
    if checkpoint is None:
        report.note("no whole checkpoint of this run was found: training starts from its beginning")
    else:
        report.note(
            f"resumed after step {checkpoint.step}, from {'the artifacts of the run' if stored else checkpoint.folder.name}"
        )
    return checkpoint


def _from_artifacts(run_id: str, tracking_uri: str, folder: Path, beyond: int, report: Report) -> Checkpoint | None:
    """Return the furthest whole checkpoint among the run's artifacts that is beyond this step."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri)
    slots = with_patience(lambda: client.list_artifacts(run_id, CHECKPOINTS_FOLDER), report)
    steps: dict[str, int] = {}
    for slot in slots:
        try:
            steps[slot.path] = int(
                json.loads(_download(client, run_id, f"{slot.path}/{MANIFEST}", folder, report).read_text())["step"]
            )
        except (OSError, ValueError, KeyError) as error:
            _note_torn(report)(f"artifact {slot.path}: no manifest: {type(error).__name__}")
    for path, step in sorted(steps.items(), key=lambda item: -item[1]):
        if step <= beyond:
            continue
        try:
            return opened(_download(client, run_id, path, folder, report))
        except (OSError, TornCheckpointError) as error:
            _note_torn(report)(f"artifact {path}: {error}")
    return None


def _download(client: Any, run_id: str, path: str, folder: Path, report: Report) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return Path(with_patience(lambda: client.download_artifacts(run_id, path, str(folder)), report))


def _note_torn(report: Report) -> Callable[[str], None]:
    return lambda torn: report.note(f"an incomplete checkpoint is passed over: {torn}")


def _is_of(job: JobFolder, run_id: str) -> bool:
    return (job.read("run") or {}).get("run_id") == run_id


def uploads(report: Report, limit: int) -> Callable[[Checkpoint], None]:
    """Return what uploads each checkpoint over the oldest one in the run's artifacts, so that their size does not grow."""
    count = 0

    def upload(checkpoint: Checkpoint) -> None:
        nonlocal count
        slot = f"{CHECKPOINTS_FOLDER}/slot-{count % max(2, limit)}"
        report.event("checkpoint", step=checkpoint.step, path=str(checkpoint.folder), folder=slot)
        count += 1

    return upload


def chose_before(param: str, tracking_uri: str, run_id: str, report: Report) -> bool:
    """Return whether an earlier attempt recorded this param, or no params at all."""
    from mlflow import MlflowClient

    logged = with_patience(lambda: MlflowClient(tracking_uri).get_run(run_id), report).data.params
    return not logged or param in logged


def record_drift(now: Mapping[str, Any], tracking_uri: str, run_id: str, folder: Path, report: Report) -> None:
    """Record which params differ from those of an earlier attempt; MLflow keeps the first values."""
    from mlflow import MlflowClient

    logged = with_patience(lambda: MlflowClient(tracking_uri).get_run(run_id), report).data.params
    texts = {name: param_text(str(value)) for name, value in now.items()}
    drift = {name: [logged[name], text] for name, text in texts.items() if logged.get(name, text) != text}
    if not drift:
        return
    report.note(
        "changed since the run began: " + ", ".join(f"{name} {old} -> {new}" for name, (old, new) in drift.items())
    )
    report.tags({DRIFT_TAG: json.dumps(drift)})
    path = folder / "param_drift.json"
    path.write_text(json.dumps(drift, indent=1), encoding="utf-8")
    report.artifact(path, RECORDS_FOLDER)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
