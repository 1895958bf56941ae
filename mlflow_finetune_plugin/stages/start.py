"""The version that a training continues: found again by a resumed run, and what was trained on before is not forgotten."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.logged_models.start_version import START_FOLDER, StartVersion, fetch_start
from mlflow_finetune_plugin.planning.plan import Plan
from mlflow_finetune_plugin.stages.context import RunContext
from mlflow_finetune_plugin.stages.outages import with_patience
from mlflow_finetune_plugin.stages.records.trained_rows import rows_among, trained_rows_of
from mlflow_finetune_plugin.store.names import START_FROM_TAG
from mlflow_finetune_plugin.store.start_model import is_fixed


def find_start(config: RunConfig, context: RunContext, report: Report) -> StartVersion | None:
    """Return the version that ``start_from`` names, its files checked and copied to the run's folder; None without one.

    A resumed run continues from the version of its first attempt, also when the alias was moved since.

    Raises:
        ConfigError: There is no such version.
        ReloadError: Its files are not as they were registered.
        TrackingError: Registry or artifacts cannot be reached.
    """
    if config.start_from is None:
        return None
    import mlflow
    from mlflow import MlflowClient

    mlflow.set_tracking_uri(context.tracking_uri)
    client, reference = MlflowClient(), config.start_from
    if config.resume is not None and not is_fixed(reference):
        tags = with_patience(lambda: client.get_run(context.run_id), report).data.tags
        reference = tags.get(START_FROM_TAG, reference)
    return with_patience(lambda: fetch_start(client, reference, context.folder / START_FOLDER), report)


def note_start(
    start: StartVersion, plan: Plan, data: PreparedData, context: RunContext, report: Report
) -> PreparedData:
    """Return the data with what the start version was trained on added to its trained rows, and to the data report's notes."""
    from mlflow import MlflowClient

    known = trained_rows_of(MlflowClient(), start.model_id, context.folder / START_FOLDER / "trained", report)
    notes, trained_rows = _leak_notes(start, data, known), data.trained_rows
    if known is not None and known[1] == plan.config.training.seed:
        trained_rows = np.unique(np.concatenate([trained_rows, known[0]]))
    elif known is not None:
        notes.append(
            f"{start.uri} was trained with seed {known[1]}: its rows are not in this run's record of trained rows, so the gate "
            f"does not leave them out; fix: training.seed: {known[1]}"
        )
    trained_in, now = start.card["base_model"]["dtype"], str(plan.base.dtype).removeprefix("torch.")
    if trained_in != now:
        notes.append(
            f"the base of {start.uri} was held in {trained_in}, this one is in {now}: answers may differ slightly"
        )
    for note in notes:
        report.note(note)
    data_report = replace(data.report, notes=(*data.report.notes, *notes))
    return replace(data, report=data_report, trained_rows=trained_rows)


def _leak_notes(start: StartVersion, data: PreparedData, known: tuple[np.ndarray, int] | None) -> list[str]:
    if known is None:
        return [
            f"whether {start.uri} was trained on held-out rows of this run is not known: its run has no record of its rows"
        ]
    leaked = len(rows_among(data.eval_rows, *known))
    if not leaked:
        return []
    return [
        f"{start.uri} was trained on {leaked:,} of the {len(data.eval_rows):,} held-out rows, for which the proof is too good; "
        "fix: hold out rows that it has not seen"
    ]
