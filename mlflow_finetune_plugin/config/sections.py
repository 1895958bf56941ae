"""The sections of a recipe: every key of ``finetune.yaml`` with its type, default and description.

Names are TRL's, PEFT's and MLflow's. The plan replaces every ``auto`` once, and logs the reason.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt

from mlflow_finetune_plugin.data.conversations.turns.tags import check_tags
from mlflow_finetune_plugin.section import Auto, DataLocation, Layout, LocalFile, Section

MAX_PRECISION_GAP = 0.5


def _as_names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[list[str], BeforeValidator(_as_names)]


def _checked_tags(tags: dict[str, str]) -> dict[str, str]:
    check_tags(tags)
    return tags


class DataFileSettings(Section):
    """One data file of a mixture."""

    path: DataLocation = Field(
        min_length=1,
        description="File (relative to the recipe, or with -P to the current directory), hf:NAME[:CONFIG]:SPLIT, runs:/RUN_ID/PATH, models:/NAME/VERSION/PATH or votes:NAME.",
    )
    task: str | None = Field(None, description="Name of the task; default: the file's stem.")
    weight: float = Field(1.0, gt=0, description="How often its rows are drawn, 1 = each once per epoch.")
    instruction: str | None = Field(
        None,
        min_length=1,
        description="Text before the first user turn of each row, for rows that do not state the task.",
    )
    layout: Layout | None = Field(None, description="How its rows are laid out; default: data.layout.")
    columns: dict[str, str] | None = Field(None, description="Role -> column in this file; default: data.columns.")
    ignore: Names | None = Field(None, description="Columns to leave out in this file; default: data.ignore.")
    prompt_template: str | None = Field(
        None, min_length=1, description="Jinja text that composes this file's prompts; default: data.prompt_template."
    )
    tags: Annotated[dict[str, str], AfterValidator(_checked_tags)] | None = Field(
        None,
        description="Names of the fields and roles of ShareGPT's turns in this file, as LLaMA-Factory's tags: {role_tag, content_tag, user_tag, ...}.",
    )


def _as_files(value: Any) -> Any:
    if isinstance(value, str):
        return [{"path": value}]
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


def _as_files_or_fraction(value: Any) -> Any:
    return value if isinstance(value, float) else _as_files(value)


Files = Annotated[list[DataFileSettings], BeforeValidator(_as_files), Field(min_length=1)]


class DataSettings(Section):
    """The rows to train on, and the held-out rows."""

    train: Files = Field(description="File, folder or pattern, list of these, or list of {path, task, weight}.")
    eval: Annotated[
        Annotated[list[DataFileSettings], Field(min_length=1)] | Annotated[float, Field(gt=0, lt=1)] | None,
        BeforeValidator(_as_files_or_fraction),
    ] = Field(None, description="Held-out files, or a fraction of train; default: 10 % of train, at most 500 rows.")
    validation: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Fraction of train whose loss is measured every eval_steps, and chooses the best weights; it is not trained on. "
        "Default: a tenth, at most 500 rows, if training chooses weights by it, else the held-out rows' loss is measured.",
    )
    layout: Layout = Field("auto", description="How rows are laid out; auto recognises it and shows the guess.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Role -> column, e.g. {prompt: text, completion: intent}."
    )
    ignore: Names = Field(
        default_factory=list,
        description="Columns that are not a part of the task. An unused column that looks like one stops the run.",
    )
    prompt_template: str | None = Field(
        None,
        min_length=1,
        description="Jinja text over the columns of a row that composes its prompt, e.g. '{{ question }}\n\n{{ context }}'.",
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="Column that names the group of a row (a conversation, a customer). The rows of a group are on one side "
        "of the split, and intervals count groups instead of rows.",
    )
    picture_hosts: Annotated[
        list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+(:[0-9]+)?$")]], BeforeValidator(_as_names)
    ] = Field(
        default_factory=list,
        description="Hosts from which pictures behind https links are fetched, e.g. [images.example.com]. Other links are refused.",
    )
    max_skipped: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of a file's rows that may be unusable; above it the run stops. Rows over max_length do not count.",
    )
    overlength: Literal["error", "drop", "truncate", "split"] = Field(
        "error", description="What happens to rows over max_length; split: plain text in pieces, other rows an error."
    )
    chat_template: LocalFile | None = Field(
        None, description="Jinja file; default: the base's own, else the packaged plain one."
    )
    chat_template_kwargs: dict[str, StrictBool | StrictInt | float | str] = Field(
        default_factory=dict,
        description="Values of variables that the chat template reads, e.g. {enable_thinking: false}. The model keeps them.",
    )
    mixing: Literal["proportional", "equal", "temperature"] = Field(
        "proportional",
        description="How often each task is drawn: in proportion to its rows, equally, or in proportion to rows ** (1 / mixing_temperature).",
    )
    mixing_temperature: float = Field(2.0, ge=1, description="Exponent of mixing: temperature; 1 is proportional.")


class HeldOutSettings(DataSettings):
    """The rows that an adapter is evaluated on. Training files are not read."""

    train: Files | None = Field(None, description="Not read by evaluate.")  # type: ignore[assignment]


class TrainingSettings(Section):
    """How training runs; names and meanings as in transformers.TrainingArguments and trl.SFTConfig."""

    num_train_epochs: Annotated[float, Field(gt=0)] | Auto = Field("auto", description="Passes over the data.")
    max_steps: int | None = Field(None, gt=0, description="Optimiser steps; overrides num_train_epochs.")
    learning_rate: Annotated[float, Field(gt=0)] | Auto = Field("auto", description="Peak learning rate.")
    per_device_train_batch_size: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto", description="Rows per device and micro-step."
    )
    gradient_accumulation_steps: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto", description="Micro-steps per optimiser step."
    )
    batching: Literal["padded", "grouped", "packed"] | Auto = Field(
        "auto",
        description="How the rows of a step share a pass: padded, grouped by length, or packed end to end without leaks.",
    )
    max_batch_tokens: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto",
        description="Tokens of a micro-batch (grouped, packed); auto: per_device_train_batch_size rows of the longest.",
    )
    max_length: Annotated[int, Field(gt=1)] | Auto = Field(
        "auto", description="Tokens a row may have; auto: the model's context, at most 2048."
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "cosine_with_min_lr"
    ] = Field("linear", description="Course of the learning rate.")
    warmup_steps: Annotated[float, Field(ge=0)] | Auto = Field(
        "auto", description="Steps of warm-up; below 1 a share of all steps; auto: 5 %."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradient clipping; 0 is none.")
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adafactor",
        "sgd",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "lion_32bit",
        "paged_lion_8bit",
    ] = Field(
        "adamw_torch", description="Optimiser, by its name in transformers; the 8 and 32 bit ones are bitsandbytes'."
    )
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's beta1.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW's beta2.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1, description="Label smoothing.")
    neftune_noise_alpha: float | None = Field(
        None, gt=0, description="NEFTune noise on the embeddings (arXiv 2310.05914)."
    )
    gradient_checkpointing: bool | Auto = Field(
        "auto", description="Recompute activations; auto: on for a GPU, off for a CPU."
    )
    bf16: bool | Auto = Field(
        "auto", description="bfloat16 autocast; auto: on where the GPU has it and the base is not float32."
    )
    logging_steps: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto", description="Steps between logged metrics; auto: about 100 points."
    )
    eval_steps: Annotated[int, Field(gt=0)] | None = Field(
        None,
        description="Steps between evaluations of the loss on the validation rows, or on the held-out rows without them; default: none.",
    )
    save_steps: Annotated[int, Field(gt=0)] | Auto | None = Field(
        "auto", description="Steps between checkpoints, from which a run can be resumed; auto: about 4 a run."
    )
    save_total_limit: int = Field(2, ge=1, description="Checkpoints that are kept while the run lasts.")
    keep_checkpoints: bool = Field(
        False,
        description="Keep the checkpoints with their optimiser state among the artifacts of a finished run. By default "
        "they are removed once the run has finished; a failed run keeps them, so that it can be resumed.",
    )
    load_best_model_at_end: bool = Field(
        False, description="Keep the weights that were best on the validation rows, not the last; needs eval_steps."
    )
    metric_for_best_model: str = Field(
        "eval_loss",
        description="Metric that decides which weights are best: eval_loss, eval_mean_token_accuracy, or a figure of the "
        "objective, such as eval_rewards/margins.",
    )
    early_stopping_patience: Annotated[int, Field(gt=0)] | None = Field(
        None, description="End training after this many evaluations without a new best; needs eval_steps."
    )
    dataloader_num_workers: int = Field(0, ge=0, description="Processes that collate batches.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of data order, initialisation and dropout.")


class EvalSettings(Section):
    """The proof: base against adapter on held-out rows."""

    metrics: Annotated[list[LocalFile], Field(min_length=1)] | Auto = Field(
        "auto",
        description="exact_match, accuracy, f1, token_f1, rougeL, bleu, chrf, perplexity, preference_accuracy (pairs), or a path to a metric file.",
    )
    max_new_tokens: Annotated[int, Field(gt=0)] | Auto = Field(
        "auto", description="Length of answers; auto: the longest reference."
    )
    max_rows: int | None = Field(None, gt=0, description="Held-out rows to use; default: all.")
    forgetting: LocalFile | Literal[False] | None = Field(
        None, description="Text that the adapter was not trained on; default: a packaged text; false: not measured."
    )
    single_task_references: bool = Field(
        False,
        description="For a mixture of tasks: also train one adapter per task, and report what the mixture costs each task.",
    )
