"""Decides everything before any weight is read: the base, its precision, the method's options, every ``auto``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons, takes_adapters
from mlflow_finetune_plugin.base_models.loading import BaseModel
from mlflow_finetune_plugin.config.data_files import data_files
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.config.sections import (
    MAX_PRECISION_GAP,
    DataSettings,
    EvalSettings,
)
from mlflow_finetune_plugin.data.mixture import Mixture, mix, tasks_of
from mlflow_finetune_plugin.data.preparation import DataRequest, PreparedData
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.evaluation.results import EvalRow, answer_room
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.methods import Method, load_method
from mlflow_finetune_plugin.planning.defaults import resolve_batching, resolve_max_length, resolve_training
from mlflow_finetune_plugin.threads import ThreadChoice, choose_threads

_CLASSIFICATION_METRICS = ["exact_match", "f1", "perplexity"]
_SHORT_ANSWER_METRICS = ["exact_match", "token_f1", "perplexity"]
_SAMPLE_TOKENS = 64
_LONG_ANSWER_METRICS = ["rougeL", "chrf", "perplexity"]

_SERVING_REASONS = {
    "vllm": "vLLM loads the adapter beside its base",
    "convertible": "vLLM takes it once it is converted to plain LoRA",
    "merge": "the rank is beyond vLLM's largest; merged into the base (mlflow-finetune export --merged) any engine serves it",
    "transformers": "vLLM has no layers for {adaptation} on {family}",
}


@dataclass(frozen=True)
class Plan:
    """What was decided, and why.

    Once ``settle`` has seen the data, ``config`` holds no ``auto`` any more, but for ``data.layout`` of a mixture whose
    files have different layouts: the reason then lists them.
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
    """How many share a step."""
    expected_tokens_per_s: float | None = None
    """Training speed that the forecast expects of this machine; None without a forecast."""

    @property
    def serving(self) -> str:
        """vllm, convertible, merge or transformers. vLLM has no LoRA layers for some families: those stay with transformers."""
        serving = load_method("adaptation", self.config.adaptation).serving(self.adaptation_options)
        return serving if takes_adapters(self.facts.model_type) else "transformers"

    @property
    def method(self) -> Method:
        """Both methods with their options."""
        config = self.config
        return Method(
            load_method("adaptation", config.adaptation),
            self.adaptation_options,
            load_method("objective", config.objective),
            config.objective_options(),
        )

    @property
    def serving_precisions(self) -> list[str]:
        """The base's own, and what the recipe asks for besides."""
        further = self.config.register_as.precisions if self.config.register_as is not None else []
        return list(dict.fromkeys([self.base.precision, *further]))

    @property
    def max_precision_gap(self) -> float:
        """Nats on a token."""
        register = self.config.register_as
        return MAX_PRECISION_GAP if register is None else register.max_precision_gap

    @property
    def policy(self) -> GatePolicy:
        """What a promotion will ask of the version; a gain alone where the recipe does not say."""
        register = self.config.register_as
        return register.gate if register is not None and register.gate is not None else GatePolicy()

    @property
    def rows_a_step(self) -> int:
        """The effective batch; once settled."""
        training = self.config.training
        return int(training.per_device_train_batch_size) * int(training.gradient_accumulation_steps) * self.processes

    @property
    def serving_reason(self) -> str:
        """Why it is served so."""
        return _SERVING_REASONS[self.serving].format(family=self.facts.model_type, adaptation=self.config.adaptation)

    @property
    def serving_flags(self) -> list[str]:
        """What vLLM has to be started with, its default of 16 for the rank aside."""
        if self.serving != "vllm":
            return []
        rank = load_method("adaptation", self.config.adaptation).vllm_max_lora_rank(self.adaptation_options)
        return [] if rank is None else ["--enable-lora", "--max-lora-rank", str(rank)]

    @property
    def options(self) -> dict[str, Any]:
        """The options of both methods, resolved."""
        return {**self.adaptation_options.model_dump(), **self.config.objective_options().model_dump()}


def make_plan(config: RunConfig, *, processes: int = 1) -> Plan:
    """Checks the request against the base's files and shapes. Raises BaseModelError for what cannot be trained."""
    reasons: Reasons = {}
    base = loading.find_base_model(config.base_model, reasons)
    _check_precisions(config, base)
    facts = loading.describe(base)
    adaptation = load_method("adaptation", config.adaptation)
    if base.quantization is not None and base.quantization == adaptation.QUANTIZATION:
        reasons["base_model.quantization"] = f"{base.quantization}: what {config.adaptation} holds a base in"
    options = adaptation.resolve(config.adaptation_options(), facts, reasons)
    max_length = resolve_max_length(config.training, facts, reasons)
    template = Path(config.data.chat_template).read_text(encoding="utf-8") if config.data.chat_template else None
    renderer = ChatRenderer(loading.load_tokenizer(base), template, weights=base.folder)
    threads = choose_threads(facts.hidden_size, processes=processes)
    reasons["threads"] = str(threads)
    return Plan(config, base, facts, options, renderer, max_length, reasons, threads, processes)


def _check_precisions(config: RunConfig, base: loading.BaseModel) -> None:
    further = config.register_as.precisions if config.register_as is not None else []
    if further and base.quantization is not None:
        raise ConfigError(
            [
                f"register.precisions: {', '.join(further)}: a base in {base.quantization} is served as it was trained; "
                "fix: leave precisions out"
            ]
        )


def data_request(plan: Plan) -> DataRequest:
    """The data section in the words of the data room."""
    data = plan.config.data
    return DataRequest(
        train=data_files(data.train),
        eval=data_files(data.eval) if isinstance(data.eval, list) else data.eval,
        layout=data.layout,
        columns=data.columns,
        overlength=data.overlength,
        max_length=plan.max_length,
        max_eval_rows=plan.config.eval.max_rows,
        seed=plan.config.training.seed,
    )


def mix_tasks(plan: Plan, data: PreparedData) -> tuple[Mixture, PreparedData]:
    """Which rows are drawn how often, by the config's mixing, and the data drawn so."""
    settings = plan.config.data
    mixture = mix(tasks_of(data.train), settings.mixing, settings.mixing_temperature, plan.config.training.seed)
    return mixture, data if mixture.is_unchanged else replace(data, train=data.train.select(mixture.indices))


def settle_on(plan: Plan, data: PreparedData) -> Plan:
    """Resolves what depends on the data."""
    return settle(
        plan,
        train_rows=len(data.train),
        longest_row=data.report.train.length_quantiles["max"],
        eval_rows=data.eval_rows,
        layouts=[file.layout for file in data.report.files],
    )


def settle(plan: Plan, *, train_rows: int, longest_row: int, eval_rows: list[EvalRow], layouts: list[str]) -> Plan:
    """Resolves what depends on the data."""
    config, reasons = plan.config, dict(plan.reasons)
    adaptation = load_method("adaptation", config.adaptation)
    on_gpu = torch.cuda.is_available()
    training = resolve_training(
        config.training,
        learning_rate=adaptation.learning_rate(plan.facts),
        rows=train_rows,
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
    sections = {
        "base_model": config.base_model.model_copy(
            update={
                "dtype": str(plan.base.dtype).removeprefix("torch."),
                "attn_implementation": plan.base.attn_implementation,
            }
        ),
        "data": _with_layout(config.data, layouts, reasons),
        "training": training,
        "eval": settle_eval(config.eval, eval_rows, layouts, reasons),
    }
    return replace(plan, config=config.model_copy(update=sections), reasons=reasons)


def settle_eval(settings: EvalSettings, eval_rows: list[EvalRow], layouts: list[str], reasons: Reasons) -> EvalSettings:
    """Metrics and the length of answers, by what the held-out rows are."""
    update: dict[str, Any] = {}
    if settings.metrics == "auto":
        update["metrics"], why = _metrics(eval_rows, layouts)
        reasons["eval.metrics"] = f"{', '.join(update['metrics'])}: {why}"
    if settings.max_new_tokens == "auto":
        room = answer_room(eval_rows)
        is_sample = _are_texts(layouts)
        update["max_new_tokens"] = min(room, _SAMPLE_TOKENS if is_sample else 1024)
        why = (
            "a sample, which no metric of plain text reads"
            if is_sample
            else f"the longest reference has {room - 8} tokens"
        )
        reasons["eval.max_new_tokens"] = f"{update['max_new_tokens']}: {why}"
    return settings.model_copy(update=update)


def _with_layout(data: DataSettings, layouts: list[str], reasons: Reasons) -> DataSettings:
    """``layouts`` is what was recognised, one per file, for example ``label: text -> intent``."""
    if data.layout != "auto":
        return data
    names = {layout.partition(":")[0] for layout in layouts}
    reasons["data.layout"] = (
        f"{', '.join(sorted(names))}: recognised by the columns, {'; '.join(dict.fromkeys(layouts))}"
    )
    return data.model_copy(update={"layout": names.pop()}) if len(names) == 1 else data


def _are_texts(layouts: list[str]) -> bool:
    return bool(layouts) and all(layout.startswith("text:") for layout in layouts)


def _metrics(rows: list[EvalRow], layouts: list[str]) -> tuple[list[str], str]:
    if _are_texts(layouts):
        return ["perplexity"], "plain text has no answers to compare"
    if layouts and all(layout.startswith("label") for layout in layouts):
        return _CLASSIFICATION_METRICS, "answers are labels"
    words = sorted(len(row.reference.split()) for row in rows)
    if words[len(words) // 2] <= 8:
        return _SHORT_ANSWER_METRICS, "half of the references have at most 8 words"
    return _LONG_ANSWER_METRICS, "references are sentences"
