"""Decide everything before any weight is read: the base, its precision, the method's options, every ``auto``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons, serving_on
from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.config.data_files import data_files
from mlflow_finetune_plugin.config.reward_options import reward_metrics, rewards_of
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.config.sections import (
    MAX_PRECISION_GAP,
    DataSettings,
)
from mlflow_finetune_plugin.data.mixture import Mixture, mix, tasks_of
from mlflow_finetune_plugin.data.preparation import PreparedData
from mlflow_finetune_plugin.data.request import DataRequest
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.logged_models.start_version import StartVersion
from mlflow_finetune_plugin.methods import Adaptation, Method, Rollouts, load_method, precision_fault
from mlflow_finetune_plugin.planning.defaults import (
    resolve_batching,
    resolve_max_length,
    resolve_training,
    validation_fraction,
)
from mlflow_finetune_plugin.planning.eval_settings import settle_eval
from mlflow_finetune_plugin.planning.micro_batch_shapes import steps_of
from mlflow_finetune_plugin.planning.rollouts import (
    check_rollouts,
    resolve_rollouts,
    sampler_problems,
    steps_with_rollouts,
)
from mlflow_finetune_plugin.planning.start import check_base, continued_config, continued_options, renderer_of
from mlflow_finetune_plugin.planning.votes import VotedData
from mlflow_finetune_plugin.rewards import RewardSettings
from mlflow_finetune_plugin.threads import ThreadChoice, choose_threads
from mlflow_finetune_plugin.votes.training.files import GROUP_COLUMN

_SERVING_REASONS = {
    "vllm": "vLLM loads the adapter beside its base",
    "convertible": "vLLM loads it after conversion to plain LoRA (mlflow-finetune export --lora)",
    "merge": "{merge}; after a merge into the base (mlflow-finetune export --merged) any engine serves it",
    "none": "a reward model writes no answers; it is loaded with mlflow.pyfunc, as a grader",
    "transformers": "vLLM has no layers for {adaptation} on {family}",
}


@dataclass(frozen=True)
class Plan:
    """The decisions for a run, and their reasons.

    After ``settle``, ``config`` holds no ``auto``, except ``data.layout`` of a mixture of files with different layouts: the
    reason then lists them.
    """

    config: RunConfig
    base: BaseModel
    facts: BaseFacts
    adaptation_options: Any
    renderer: ChatRenderer
    max_length: int
    reasons: Reasons
    threads: ThreadChoice
    """Compute threads of each process."""
    processes: int = 1
    """The number of processes that share each step."""
    start: StartVersion | None = None
    """The version whose adapter the training continues; None for a new adapter."""
    votes: VotedData = field(default_factory=VotedData)
    """The votes that the data section names, once ``prepare_rows`` has them."""
    expected_tokens_per_s: float | None = None
    """Training speed that the forecast expects of this machine; None without a forecast."""

    @property
    def serving(self) -> str:
        """How the adapter can be served, see ``methods.Serving``; ``none`` for a reward model, which writes no answers.

        Families without LoRA layers in vLLM need transformers.
        """
        if self.is_reward_model:
            return "none"
        serving = load_method("adaptation", self.config.adaptation).serving(self.adaptation_options)
        return "transformers" if self.facts.sees else serving_on(self.facts.model_type, serving)

    @property
    def method(self) -> Method:
        """Adaptation and objective with their options."""
        config = self.config
        return Method(
            load_method("adaptation", config.adaptation),
            self.adaptation_options,
            load_method("objective", config.objective),
            config.objective_options(),
        )

    @property
    def is_reward_model(self) -> bool:
        """Whether the result gives rewards instead of answers."""
        return self.method.objective.MODEL == "score"

    @property
    def virtual_token_ids(self) -> tuple[int, ...]:
        """The ids that every row for training starts with: they follow the base's vocabulary."""
        first, count = self.facts.vocabulary_size, self.method.adaptation.virtual_tokens(self.adaptation_options)
        return tuple(range(first, first + count))

    @property
    def serving_precisions(self) -> list[str]:
        """The base's precision, and further ones of the recipe."""
        further = self.config.register_as.precisions if self.config.register_as is not None else []
        return list(dict.fromkeys([self.base.precision, *further]))

    @property
    def max_precision_gap(self) -> float:
        """The largest precision gap allowed, in nats on a token."""
        register = self.config.register_as
        return MAX_PRECISION_GAP if register is None else register.max_precision_gap

    @property
    def policy(self) -> GatePolicy:
        """The recipe's promotion policy; by default it requires a gain only."""
        register = self.config.register_as
        return register.gate if register is not None and register.gate is not None else GatePolicy()

    @property
    def rollouts(self) -> Rollouts | None:
        """What the objective samples while it trains; None if it learns from the rows as they are."""
        method = self.method
        return method.objective.rollouts(method.objective_options)

    @property
    def rewards(self) -> list[RewardSettings]:
        """The parts of the objective's reward; none for an objective without one."""
        return rewards_of(self.config.objective_options())

    def steps(self, rows: int) -> int:
        """Return the optimizer steps of the run; only after ``settle``."""
        training, rollouts = self.config.training, self.rollouts
        if rollouts is not None:
            return steps_with_rollouts(training, rollouts, rows)
        return steps_of(training, rows, self.processes)

    @property
    def rows_a_step(self) -> int:
        """The effective batch in rows; only after ``settle``."""
        training = self.config.training
        return int(training.per_device_train_batch_size) * int(training.gradient_accumulation_steps) * self.processes

    @property
    def serving_reason(self) -> str:
        """The reason for ``serving``."""
        if self.facts.sees and self.serving == "transformers":
            return "the base reads pictures, which this package serves with the Transformers engine"
        name = self.config.adaptation
        merge = "the rank is above vLLM's limit" if name in ("lora", "qlora") else f"vLLM has no layers for {name}"
        return _SERVING_REASONS[self.serving].format(family=self.facts.model_type, adaptation=name, merge=merge)

    @property
    def serving_flags(self) -> list[str]:
        """The flags that vLLM needs for this adapter."""
        if self.serving != "vllm":
            return []
        rank = load_method("adaptation", self.config.adaptation).vllm_max_lora_rank(self.adaptation_options)
        return [] if rank is None else ["--enable-lora", "--max-lora-rank", str(rank)]

    @property
    def options(self) -> dict[str, Any]:
        """The resolved options of adaptation and objective."""
        return {**self.adaptation_options.model_dump(), **self.config.objective_options().model_dump()}


def make_plan(config: RunConfig, *, processes: int = 1, start: StartVersion | None = None) -> Plan:
    """Plan a run from the base's files and shapes. ``settle`` completes the plan once the data is known.

    Args:
        config: the run's config.
        processes: how many processes share each step.
        start: the version that ``config.start_from`` names; its adapter decides the shapes, its tokenizer the rendering.

    Raises:
        BaseModelError: this base cannot be trained with this config.
        ConfigError: the config contradicts itself, or the start version.
    """
    reasons: Reasons = {}
    if start is not None:
        config = continued_config(config, start, reasons)
    base = loading.find_base_model(config.base_model, reasons)
    _check_precisions(config, base)
    facts = loading.describe(base)
    adaptation = load_method("adaptation", config.adaptation)
    dtype = str(base.dtype).removeprefix("torch.")
    fault = precision_fault(config.adaptation, adaptation, quantization=base.quantization, dtype=dtype)
    if fault is not None:
        raise ConfigError([fault[1]])
    if base.quantization is not None and base.quantization == adaptation.QUANTIZATION:
        reasons["base_model.quantization"] = f"{base.quantization}: the default of {config.adaptation}"
    if facts.sees:
        _check_sees(config, adaptation)
    options = config.adaptation_options()
    if start is None:
        options = adaptation.resolve(options, facts, reasons)
        renderer = ChatRenderer(
            loading.load_tokenizer(base),
            template_file(config),
            weights=base.folder,
            template_settings=config.data.chat_template_kwargs,
            pictures=loading.load_picture_inputs(base),
        )
    else:
        check_base(start, base)
        options = continued_options(start, base, facts, adaptation, options, reasons)
        renderer = renderer_of(start, base)
    max_length = resolve_max_length(config.training, facts, reasons)
    if (count := adaptation.virtual_tokens(options)) >= max_length:
        raise ConfigError(
            [
                f"training.max_length = {max_length}: the {count} virtual tokens leave no token for a row; fix: raise it, or use fewer "
                "options.num_virtual_tokens"
            ]
        )
    threads = choose_threads(facts.hidden_size, processes=processes)
    reasons["threads"] = str(threads)
    return Plan(config, base, facts, options, renderer, max_length, reasons, threads, processes, start)


def _check_sees(config: RunConfig, adaptation: Adaptation) -> None:
    """Raise ConfigError for an adaptation or an objective that does not train on bases that see."""
    problems = []
    if not adaptation.SEES:
        problems.append(
            f"adaptation = {config.adaptation}: does not train on a base that reads pictures; fix: -P adaptation=lora or qlora"
        )
    if load_method("objective", config.objective).ROWS != "answers":
        problems.append(
            f"objective = {config.objective}: does not train on a base that reads pictures; fix: -P objective=sft"
        )
    if problems:
        raise ConfigError(problems)


def template_file(config: RunConfig) -> str | None:
    """Return the text of the chat template that the config names; None without one."""
    path = config.data.chat_template
    return Path(path).read_text(encoding="utf-8") if path else None


def _check_precisions(config: RunConfig, base: loading.BaseModel) -> None:
    further = config.register_as.precisions if config.register_as is not None else []
    if further and base.quantization is not None:
        raise ConfigError(
            [
                f"register.precisions: {', '.join(further)}: a base in {base.quantization} can only be served as it was trained; "
                "fix: remove precisions"
            ]
        )


def data_request(plan: Plan) -> DataRequest:
    """Return the data section as a request to the data room."""
    data = plan.config.data
    is_grouped_by_votes = any(file.grouping is not None for file in plan.votes.files)
    return DataRequest(
        train=plan.votes.of(data_files(data.train)),
        eval=plan.votes.of(data_files(data.eval)) if isinstance(data.eval, list) else data.eval,
        layout=data.layout,
        columns=data.columns,
        overlength=data.overlength,
        max_length=plan.max_length,
        max_eval_rows=plan.config.eval.max_rows,
        seed=plan.config.training.seed,
        ignore=tuple(data.ignore),
        prompt_template=data.prompt_template,
        max_skipped=data.max_skipped,
        validation=validation_fraction(data.validation, plan.config.training),
        group=GROUP_COLUMN if is_grouped_by_votes else data.group,
        form=plan.method.objective.ROWS,
        virtual_token_ids=plan.virtual_token_ids,
        picture_hosts=tuple(data.picture_hosts),
    )


def mix_tasks(plan: Plan, data: PreparedData) -> tuple[Mixture, PreparedData]:
    """Return how often each row is drawn by the config's mixing, and the data after drawing."""
    settings = plan.config.data
    mixture = mix(tasks_of(data.train), settings.mixing, settings.mixing_temperature, plan.config.training.seed)
    return mixture, data if mixture.is_unchanged else replace(data, train=data.train.select(mixture.indices))


def settle_on(plan: Plan, data: PreparedData) -> Plan:
    """Return the plan with every ``auto`` that depends on the data resolved."""
    return settle(
        _with_objective_options(plan, data),
        train_rows=len(data.train),
        longest_row=data.report.train.length_quantiles["max"],
        eval_rows=data.eval_rows,
        layouts=[file.layout for file in data.report.files],
    )


def _with_objective_options(plan: Plan, data: PreparedData) -> Plan:
    """Return the plan with the options of the objective that depend on the training rows."""
    method, reasons = plan.method, dict(plan.reasons)
    settled = method.objective.settle(method.objective_options, data.train, reasons)
    options = {**plan.config.options, **settled.model_dump(exclude_defaults=True)}
    return replace(plan, config=plan.config.model_copy(update={"options": options}), reasons=reasons)


def settle(plan: Plan, *, train_rows: int, longest_row: int, eval_rows: list[EvalRow], layouts: list[str]) -> Plan:
    """Return the plan with every ``auto`` that depends on the data resolved."""
    config, reasons = plan.config, dict(plan.reasons)
    on_gpu = torch.cuda.is_available()
    rollouts = plan.rollouts
    training = config.training
    if rollouts is not None:
        if problems := sampler_problems(plan.method, rollouts, on_gpu=on_gpu):
            raise ConfigError(problems)
        training = resolve_rollouts(training, rollouts, prompts=train_rows, on_gpu=on_gpu, reasons=reasons)
    training = resolve_training(
        training,
        learning_rate=_learning_rate(plan),
        rows=train_rows if rollouts is None else train_rows * rollouts.num_generations,
        processes=plan.processes,
        on_gpu=on_gpu,
        has_bf16=on_gpu and torch.cuda.is_bf16_supported(including_emulation=False),
        half_precision_base=plan.base.dtype != torch.float32,
        max_length=plan.max_length,
        reasons=reasons,
    )
    training = training.model_copy(
        update=resolve_batching(training, plan.facts, longest_row=longest_row, reasons=reasons)
    )
    if rollouts is not None:
        check_rollouts(
            training,
            rollouts,
            prompts=train_rows,
            longest_prompt=longest_row,
            context_length=plan.facts.context_length,
            processes=plan.processes,
        )
    sections = {
        "base_model": config.base_model.model_copy(
            update={
                "dtype": str(plan.base.dtype).removeprefix("torch."),
                "attn_implementation": plan.base.attn_implementation,
            }
        ),
        "data": _with_layout(config.data, layouts, reasons),
        "training": training,
        "eval": settle_eval(
            config.eval,
            eval_rows,
            layouts,
            reasons,
            rollouts,
            rewards=reward_metrics(plan.rewards),
            is_reward_model=plan.is_reward_model,
        ),
    }
    return replace(plan, config=config.model_copy(update=sections), reasons=reasons)


def _learning_rate(plan: Plan) -> tuple[float, str]:
    """Return the ``auto`` learning rate: the adaptation's, unless the objective needs another."""
    method = plan.method
    rate, reason = method.adaptation.learning_rate(plan.facts)
    return method.objective.learning_rate(rate, method.objective_options) or (rate, reason)


def _with_layout(data: DataSettings, layouts: list[str], reasons: Reasons) -> DataSettings:
    """Return the data section with its layout. ``layouts`` are those recognised, one per file, e.g. ``label: text -> intent``."""
    if data.layout != "auto":
        return data
    names = {layout.partition(":")[0] for layout in layouts}
    reasons["data.layout"] = (
        f"{', '.join(sorted(names))}: recognised by the columns, {'; '.join(dict.fromkeys(layouts))}"
    )
    return data.model_copy(update={"layout": names.pop()}) if len(names) == 1 else data
