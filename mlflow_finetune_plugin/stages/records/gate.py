"""Record the policy and the held-out rows before the first step, so that a promotion can rely on them later."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mlflow_finetune_plugin.config.data_files import data_files
from mlflow_finetune_plugin.data.preparation import prepare
from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.results import EvalRow, answer_room
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.planning.plan import Plan, data_request
from mlflow_finetune_plugin.promotion.evidence import held_out
from mlflow_finetune_plugin.promotion.evidence.held_out import held_out_json
from mlflow_finetune_plugin.promotion.written_policy import write_policy
from mlflow_finetune_plugin.rewards import rewards_digest
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.plan import PlannedRun
from mlflow_finetune_plugin.store.names import GATE_DIGEST_TAG, GATE_FOLDER, HELD_OUT_FOLDER, HELD_OUT_TAG


def record_gate(planned: PlannedRun, context: RunContext, report: Report) -> None:
    """Record the policy and the held-out rows. A resumed run keeps the policy of its first attempt."""
    settings = planned.plan.config.eval
    earlier = (
        None if planned.plan.config.resume is None else written_policy(context.tracking_uri, context.run_id, report)
    )
    rows = regression_rows(planned.plan, context.folder)
    record_policy(planned.plan.policy, rows, context.folder, report, earlier=earlier)
    record_held_out(
        planned.data.eval_rows,
        list(settings.metrics),
        int(settings.max_new_tokens),
        context.folder,
        report,
        reward_digest=rewards_digest(planned.plan.rewards) if planned.plan.rewards else None,
    )


def regression_rows(plan: Plan, folder: Path) -> dict[str, list[EvalRow]]:
    """Return the rows of each regression file of the policy, read as the held-out rows are."""
    data = plan.config.data
    like = data.eval[0] if isinstance(data.eval, list) else data.train[0]
    rows: dict[str, list[EvalRow]] = {}
    for path in dict.fromkeys(regression.data for regression in plan.policy.regressions):
        file = like.model_copy(update={"path": path, "task": None, "weight": 1.0})
        request = replace(
            data_request(plan), train=(), eval=data_files([file]), max_eval_rows=None, max_skipped=1.0, group=None
        )
        prepared = prepare(request, plan.renderer, folder / "regressions")
        lost = sum(skip.rows for file in prepared.report.files for skip in file.skipped)
        if lost or not prepared.eval_rows:
            raise DataError(
                f"{path}: {lost:,} of its rows cannot be used, and a promotion asks every row of a regression file; "
                f"fix: correct the rows that mlflow-finetune data {path} lists"
            )
        rows[path] = prepared.eval_rows
    return rows


def written_policy(tracking_uri: str, run_id: str, report: Report) -> str | None:
    """Return the digest of the gate's policy that an earlier attempt recorded; None where it ended before that."""
    from mlflow import MlflowClient

    tags = with_patience(lambda: MlflowClient(tracking_uri).get_run(run_id), report).data.tags
    return str(tags[GATE_DIGEST_TAG]) if GATE_DIGEST_TAG in tags else None


def record_policy(
    policy: GatePolicy, rows: Mapping[str, Sequence[EvalRow]], folder: Path, report: Report, *, earlier: str | None
) -> None:
    """Record the policy, the rows that it names, and its digest as a tag.

    Args:
        earlier: The digest that an earlier attempt recorded. Its policy stays, because the policy must not change once
            there may be answers to judge.
    """
    written = write_policy(policy, rows)
    if earlier is not None:
        if earlier != written.digest:
            report.note(
                f"register.gate has changed since the run began ({written.digest[:12]}, was {earlier[:12]}); "
                "the version is judged by the policy of the beginning"
            )
        return
    gate = folder / "gate"
    gate.mkdir(exist_ok=True)
    for path, regression in rows.items():
        report.text(
            gate / f"{Path(path).name}.json", held_out_json(regression, (), answer_room(regression)), GATE_FOLDER
        )
    report.text(gate / "policy.json", written.to_json(), GATE_FOLDER)
    report.tags({GATE_DIGEST_TAG: written.digest})


def held_out_digest(folder: Path) -> str:
    """Return the digest (SHA-256, hex) of the held-out rows that the run in this folder recorded."""
    return hashlib.sha256((folder / held_out.FILE).read_bytes()).hexdigest()


def record_held_out(
    rows: Sequence[EvalRow],
    metrics: Sequence[str],
    max_new_tokens: int,
    folder: Path,
    report: Report,
    *,
    reward_digest: str | None = None,
) -> None:
    """Record the held-out rows whole, so that another version can answer the same rows, and the metric files with them."""
    text = held_out_json(rows, metrics, max_new_tokens, reward_digest)
    report.text(folder / held_out.FILE, text, HELD_OUT_FOLDER)
    report.tags({HELD_OUT_TAG: hashlib.sha256(text.encode()).hexdigest()})
    for metric in metrics:
        if metric.endswith(".py"):
            report.artifact(Path(metric), HELD_OUT_FOLDER)
