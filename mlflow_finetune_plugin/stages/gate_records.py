"""What a training run writes down before its first step, so that a promotion can believe it later: the policy, and the rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow_finetune_plugin.evaluation.results import EvalRow, answer_room
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.promotion import held_out
from mlflow_finetune_plugin.promotion.held_out import held_out_json
from mlflow_finetune_plugin.promotion.written_policy import write_policy
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.store.names import GATE_DIGEST_TAG, GATE_FOLDER, HELD_OUT_FOLDER, HELD_OUT_TAG


def written_policy(tracking_uri: str, run_id: str, report: Report) -> str | None:
    """The digest of the gate's policy that an earlier attempt wrote; None where it did not come so far."""
    from mlflow import MlflowClient

    tags = with_patience(lambda: MlflowClient(tracking_uri).get_run(run_id), report).data.tags
    return str(tags[GATE_DIGEST_TAG]) if GATE_DIGEST_TAG in tags else None


def record_policy(
    policy: GatePolicy, rows: Mapping[str, Sequence[EvalRow]], folder: Path, report: Report, *, earlier: str | None
) -> None:
    """What a promotion will ask, before there is an answer: the policy, the rows it names, its digest as a tag.

    ``earlier``: the digest that an attempt before this one wrote; its policy stays, because there may be answers by now.
    """
    written = write_policy(policy, rows)
    if earlier is not None:
        if earlier != written.digest:
            report.note(
                f"register.gate is not what it was when the run began ({written.digest[:12]}, was {earlier[:12]}): "
                "the version will be judged by the one that was"
            )
        return
    gate = folder / "gate"
    gate.mkdir(exist_ok=True)
    for path, found in rows.items():
        report.text(gate / f"{Path(path).name}.json", held_out_json(found, (), answer_room(found)), GATE_FOLDER)
    report.text(gate / "policy.json", written.to_json(), GATE_FOLDER)
    report.tags({GATE_DIGEST_TAG: written.digest})


def record_held_out(
    rows: Sequence[EvalRow], metrics: Sequence[str], max_new_tokens: int, folder: Path, report: Report
) -> None:
    """The held-out rows whole, so that another version can be asked the same; metric files travel with them."""
    text = held_out_json(rows, metrics, max_new_tokens)
    report.text(folder / held_out.FILE, text, HELD_OUT_FOLDER)
    report.tags({HELD_OUT_TAG: hashlib.sha256(text.encode()).hexdigest()})
    for metric in metrics:
        if metric.endswith(".py"):
            report.artifact(Path(metric), HELD_OUT_FOLDER)
