"""The contract of adaptations and objectives: protocols that mypy checks the built-in modules against."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlflow_finetune_plugin.section import Section

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons

Kind = Literal["adaptation", "objective"]
Serving = Literal["vllm", "convertible", "merge", "transformers"]
"""How a trained adapter can be served: vLLM loads it (``vllm``), or loads it after a conversion to plain LoRA
(``convertible``) or after a merge into the base (``merge``); ``transformers`` means only the Transformers engine can.
"""

Quantization = Literal["nf4", "int8"]
"""A quantisation of a base by bitsandbytes, as ``base_model.quantization`` names it."""

TrainedDtype = Literal["float32", "bfloat16", "float16"]
"""A precision of a base, as ``base_model.dtype`` names it."""

RowForm = Literal["answers", "pairs", "rated", "prompts"]
"""What one training row of an objective holds: a conversation whose ``answers`` are learned; ``pairs`` of a better and a worse
answer to one prompt; one answer that is ``rated`` good or bad; or ``prompts`` alone, with fields for a reward.
"""

ModelKind = Literal["causal", "score"]
"""Which head an objective trains on the base: ``causal`` writes answers, ``score`` gives a conversation one number, its reward."""


Sampler = Literal["trainer", "engine", "colocated_vllm"]
"""What samples completions while training: the model in training (``trainer``), the serving engine of this package in a child
process (``engine``), or vLLM in the training process (``colocated_vllm``).
"""


@dataclass(frozen=True)
class Rollouts:
    """What an objective generates while it trains. A step's rows are then completions, several of each prompt."""

    num_generations: int
    """Completions of each prompt."""
    max_completion_length: int
    """Most tokens of a completion."""
    num_iterations: int = 1
    """Updates with the same completions."""
    compares_with_start: bool = False
    """Whether each completion is also scored by the model before training."""
    sampler: Sampler = "trainer"
    """What samples the completions."""
    vllm_gpu_memory_utilization: float = 0.3
    """The share of a GPU's memory for vLLM, where it samples."""


@dataclass(frozen=True)
class TrainerContext:
    """What a training has for its objective, beside model and rows.

    Attributes:
        renderer: The ``data.tokens.renderer.ChatRenderer`` that rendered the rows: stop tokens, and the text of an answer.
        folder: Scratch folder of this process.
        report: Receives metrics, notes and artifacts.
        base: The ``base_models.loading.BaseModel`` that is trained on; None if the training does not know its files.
        method: The adaptation and the objective with their options.
    """

    renderer: Any
    folder: Path
    report: Any
    base: Any = None
    method: Method | None = None


class AdaptationModule(Protocol):
    """The members that every adaptation must define."""

    @property
    def Options(self) -> type[Section]:
        """The options that a recipe may set, each field with a description and a default."""

    def resolve(self, options: Any, base: BaseFacts, reasons: Reasons) -> Any:
        """Return the options without any ``auto``. No weights are read yet.

        Args:
            options: an instance of ``Options``.
            base: sizes and layer names of the base model.
            reasons: receives ``options.KEY`` -> "VALUE: why" for every ``auto`` that is replaced.

        Raises:
            BaseModelError: this base cannot be adapted with these options.
        """

    def learning_rate(self, base: BaseFacts) -> tuple[float, str]:
        """Return the ``auto`` learning rate and the reason for it, such as a paper."""

    def serving(self, options: Any) -> Serving:
        """Return how the trained adapter can be served."""

    def apply(self, model: PreTrainedModel, options: Any, *, seed: int, folder: Path) -> PeftModel:
        """Wrap the base model for training. Until the first step it must answer exactly as the base does; with virtual tokens,
        where a row has none of them.

        Args:
            model: the loaded base; on torch's meta device while the plan is made.
            options: resolved options.
            seed: decides every random start value.
            folder: keeps what ``save`` needs later.
        """

    def save(self, model: PeftModel, options: Any, folder: Path, *, start: Path) -> None:
        """Write ``adapter_config.json`` and ``adapter_model.safetensors`` to ``folder``, loadable on the untouched
        base.

        Args:
            model: the trained model.
            options: resolved options.
            folder: receives the two files.
            start: the folder that ``apply`` received.
        """


class Adaptation(AdaptationModule, Protocol):
    """An adaptation as ``load_method`` returns it: the optional members have the defaults below where a module omits
    them.
    """

    QUANTIZATION: Quantization | None = None
    """The ``base_model.quantization`` that applies when the recipe sets none."""

    QUANTIZATIONS: tuple[Quantization, ...] = ("nf4", "int8")
    """The quantisations of a base on which this adaptation trains. Others are refused before any weight is read."""

    SEES: bool = False
    """Whether this adaptation trains on bases that read pictures. It is refused on others before any weight is read."""

    DTYPES: tuple[TrainedDtype, ...] = ("float32", "bfloat16", "float16")
    """The precisions of a base on which this adaptation trains. Others are refused before any weight is read."""

    MODEL_CODE: tuple[Path, ...] = ()
    """Python files that are copied into every logged model and imported before its adapter is loaded.

    An adaptation that PEFT does not know registers itself in ``peft.mapping`` there. The files must not import this
    package.
    """

    def optimizer(
        self,
        model: PeftModel,
        options: Any,
        *,
        optimizer_class: type,
        optimizer_kwargs: Mapping[str, Any],
        weight_decay: float,
    ) -> Any | None:
        """Return a torch optimizer, or None for the trainer's."""
        return None

    def has_effect(self, weights: Mapping[str, Any]) -> bool:
        """Return whether the saved tensors change any answer. By default: whether any of them is not zero."""
        return any(bool(tensor.any()) for tensor in weights.values())

    def meta_options(self, options: Any) -> Any:
        """Return options of the same shapes that ``apply`` accepts for a model on torch's meta device, without weights."""
        return options

    def may_save_while_training(self, options: Any) -> bool:
        """Return whether ``save`` leaves the model as it is, so that its adapter can be used before the training ends."""
        return True

    def start_options(self, adapter_config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with which a training continues a saved adapter, as one adapter of the same shape.

        A recipe may leave them out or repeat them, and may set every other option. By default: all of ``options``.

        Args:
            adapter_config: the adapter's ``adapter_config.json``.
            options: the options of this adaptation that it was trained with; empty for an adapter that was converted.

        Raises:
            BaseModelError: the adapter cannot be continued.
        """
        return dict(options)

    def virtual_tokens(self, options: Any) -> int:
        """Return how many virtual tokens are put in front of every row, given resolved options.

        Their ids follow the base's vocabulary, and the wrapped model's input embedding names them (``virtual_token_ids``).
        """
        return 0

    def vllm_max_lora_rank(self, options: Any) -> int | None:
        """Return the ``--max-lora-rank`` that vLLM needs for this adapter, or None where vLLM needs no such flag."""
        return None


class ObjectiveModule(Protocol):
    """The members that every objective must define."""

    @property
    def Options(self) -> type[Section]:
        """The options that a recipe may set, each field with a description and a default."""

    def trainer_class_and_config(self, options: Any) -> tuple[type, type, dict[str, object]]:
        """Return the Trainer class that is used, its config class, and further arguments for that config.

        A subclass of ``training.micro_batches.MicroBatchTrainer`` packs rows, shares a step among several processes and
        divides a step further when memory is short. Any other ``transformers.Trainer`` trains in one process, as it is.
        """


class Objective(ObjectiveModule, Protocol):
    """An objective as ``load_method`` returns it: the optional members have the defaults below where a module omits them."""

    ROWS: RowForm = "answers"
    """What a training row holds. The data room reads, checks and tokenises rows of this form, and refuses others by name."""

    LOGS: tuple[str, ...] = ()
    """Further figures of the trainer's log that the run records as ``train/NAME``, and those of validation as ``validation/NAME``.

    ``*`` stands for any part of a name: ``rewards/*/mean``.
    """

    MODEL: ModelKind = "causal"
    """What is trained: a model that writes answers, or a score head behind the base, a reward model. The adaptation receives the
    model with this head, and must train the score head whole (``task_type`` of PEFT's config: ``adaptations.task_type``).
    """

    def learning_rate(self, rate: float, options: Any) -> tuple[float, str] | None:
        """Return the ``auto`` learning rate and the reason, given the adaptation's own; None keeps that one."""
        return None

    def needs_reference(self, options: Any) -> bool:
        """Return whether the loss compares with the log-probabilities of the model before training. They are computed once."""
        return False

    def settle(self, options: Any, rows: Any, reasons: Reasons) -> Any:
        """Return the options without any ``auto`` that depends on the training rows.

        Args:
            options: an instance of ``Options``.
            rows: the training rows, a ``datasets.Dataset`` with the columns of their form (data/tokens/token_file.py).
            reasons: receives ``options.KEY`` -> "VALUE: why" for every ``auto`` that is replaced.
        """
        return options

    def option_faults(self, options: Any) -> list[str]:
        """Return what is wrong with the options together, each with a fix."""
        return []

    def rollouts(self, options: Any) -> Rollouts | None:
        """Return what the objective generates while it trains; None if it learns from the rows as they are."""
        return None

    def trainer_arguments(self, options: Any, context: TrainerContext) -> AbstractContextManager[Mapping[str, Any]]:
        """Return a context manager around the training, which yields further arguments of the trainer.

        It starts what the training needs beside the model, such as the processes of a reward, and ends it afterwards.
        ``callbacks`` among the arguments are added to those of every training.
        """
        return nullcontext({})


@dataclass(frozen=True)
class Method:
    """An adaptation and an objective, each with its resolved options."""

    adaptation: Adaptation
    adaptation_options: Any
    objective: Objective
    objective_options: Any
