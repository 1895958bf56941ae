"""Prepare the rows of a run, with the chat template's thinking switched off where the rows hold no reasoning.

Some templates (Qwen3) write an empty think block before each answer, unless ``enable_thinking: false`` makes it a part of the prompt.
A model that learns to write the block writes it in served answers too, where the proof and pyfunc remove it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlflow_finetune_plugin.data.preparation import PreparedData, prepare
from mlflow_finetune_plugin.data.report.contents import DataFinding, UnusableDataError
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.planning.eval_settings import long_references
from mlflow_finetune_plugin.planning.plan import Plan, data_request, template_file
from mlflow_finetune_plugin.planning.votes import find_votes

_SWITCH = "enable_thinking"
THINKING_PARAM = f"data.chat_template_kwargs.{_SWITCH}"
"""The param in which a run records the choice."""


def prepare_rows(plan: Plan, folder: Path, *, may_choose: bool = True) -> tuple[Plan, PreparedData]:
    """Return the data as tokens in ``folder``, and the plan with the setting of the chat template that was chosen for it.

    ``may_choose`` is false where the run is a further attempt of one that began without this choice.

    Raises:
        DataError: A file, a setting or the votes of a model are not valid.
        UnusableDataError: No row is left to train or to evaluate on. It holds the report.
    """
    plan = replace(plan, votes=find_votes(plan.config, folder))
    plan, data = _prepare(
        plan, folder, may_choose=may_choose and plan.start is None
    )  # a start version keeps its rendering
    notes = (*data.report.notes, *(file.sentence for file in plan.votes.files))
    return plan, replace(data, report=replace(data.report, notes=notes, findings=_findings(plan, data)))


def _findings(plan: Plan, data: PreparedData) -> tuple[DataFinding, ...]:
    """Return the findings of the data, and that of the longest answer where the result writes answers."""
    layouts = [file.layout for file in data.report.files]
    further = None if plan.is_reward_model else long_references(plan.config.eval, data.eval_rows, layouts)
    return data.report.findings if further is None else (*data.report.findings, further)


def _prepare(plan: Plan, folder: Path, *, may_choose: bool) -> tuple[Plan, PreparedData]:
    quiet = _without_thinking(plan) if may_choose else None
    if quiet is not None:
        try:
            data = prepare(data_request(quiet), quiet.renderer, folder)
        except UnusableDataError:  # The template as it is may render more rows; otherwise its error is raised.
            data = None
        if data is not None and _is_better(data):
            return quiet, data
    return plan, prepare(data_request(plan), plan.renderer, folder)


def _is_better(data: PreparedData) -> bool:
    """Return whether rows use the template and hold no reasoning."""
    return not data.report.thinking_turns and any(file.layout.partition(":")[0] != "text" for file in data.report.files)


def _without_thinking(plan: Plan) -> Plan | None:
    """Return the plan with thinking switched off; None where this is the user's choice or takes nothing out of the answers."""
    settings = plan.config.data.chat_template_kwargs
    prefix = plan.renderer.answer_prefix
    if _SWITCH in settings or _SWITCH not in plan.renderer.chat_template or not prefix.strip():
        return None
    chosen = {**settings, _SWITCH: False}
    renderer = ChatRenderer(
        plan.renderer.tokenizer,
        template_file(plan.config),
        weights=plan.renderer.weights,
        template_settings=chosen,
    )
    if renderer.answer_prefix.strip() or renderer.rewrites_prompt:
        return None
    data = plan.config.data.model_copy(update={"chat_template_kwargs": chosen})
    reason = f"{_SWITCH}: false: the rows hold no reasoning, and otherwise the chat template writes {prefix!r} before each answer"
    return replace(
        plan,
        config=plan.config.model_copy(update={"data": data}),
        renderer=renderer,
        reasons={**plan.reasons, "data.chat_template_kwargs": reason},
    )
