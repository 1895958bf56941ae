"""Check a run before any work and without torch: packages, the base's files, the first rows of every data file."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from mlflow_finetune_plugin.base_models.attention import FLASH_PACKAGES
from mlflow_finetune_plugin.base_models.files import check_base_files, check_hub_name, local_folder
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.config.absolute_paths import resolve_paths, resolve_section_paths
from mlflow_finetune_plugin.config.data_files import column_settings, data_files
from mlflow_finetune_plugin.config.evaluation import EvaluationConfig
from mlflow_finetune_plugin.config.problems import shown
from mlflow_finetune_plugin.config.reward_options import ScoringOptions, reward_option_faults
from mlflow_finetune_plugin.config.run_config import RunConfig, draft_config
from mlflow_finetune_plugin.config.sections import DataFileSettings, DataSettings, EvalSettings
from mlflow_finetune_plugin.data.conversations.interpretation import interpret, readable_form
from mlflow_finetune_plugin.data.sources.locations import VOTES, check_location, is_remote, local_copy
from mlflow_finetune_plugin.data.sources.rows import peek
from mlflow_finetune_plugin.errors import ConfigError, FinetuneError, MissingExtraError
from mlflow_finetune_plugin.gate.policy import GatePolicy
from mlflow_finetune_plugin.methods import RowForm, load_method
from mlflow_finetune_plugin.planning.votes import votes_not_read, votes_problems

_TRAIN_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "evaluate")
_HEAD_BYTES = 65536


def load_checked_config(
    project: Path,
    entry_point: str,
    overrides: Mapping[str, str],
    *,
    caller: Path,
    folders: Mapping[str, Path] | None = None,
) -> RunConfig:
    """Return the config of a training, its paths absolute, with everything checked that needs no computation.

    The arguments are those of ``load_config``.

    Raises:
        ConfigError: With every problem of the request and of the files that it names.
        MissingExtraError: A package is not installed.
    """
    draft = draft_config(project, entry_point, overrides, caller=caller, folders=folders)
    if draft.config is not None:
        config = resolve_paths(draft.config, project)
        check_before_spend(config)
        return config
    try:
        sections = resolve_section_paths(draft.sections, project)
    except ConfigError as error:
        raise ConfigError([*draft.problems, *error.problems]) from error
    raise ConfigError([*draft.problems, *_section_problems(sections, draft.form)])


def check_before_spend(config: RunConfig) -> None:
    """Raise ConfigError with every problem of a training run, or MissingExtraError for missing packages."""
    quantised = config.base_model.quantization is not None or config.training.optim.endswith(("8bit", "32bit"))
    needed = (*_TRAIN_PACKAGES, *(("bitsandbytes",) if quantised else ()))
    _check_packages("training", *needed)
    form = load_method("objective", config.objective).ROWS
    problems = _section_problems({**dict(config), "register": config.register_as}, form)
    problems += reward_option_faults(config.objective_options())
    if problems:
        raise ConfigError(problems)


def _section_problems(sections: Mapping[str, Any], form: RowForm) -> list[str]:
    """Return what is wrong with the files that sections of a recipe name. A section that is not there is left out."""
    problems: list[str] = []
    data = sections.get("data")
    if "base_model" in sections:
        length = sections["training"].max_length if "training" in sections else None
        _check_base(sections["base_model"], length if isinstance(length, int) else None, problems)
    if data is not None:
        _check_data(data, [*data.train, *_held_out(data)], problems, (form,))
        problems.extend(votes_problems(data))
    if "eval" in sections:
        _check_eval(sections["eval"], problems)
    if data is not None and sections.get("register") is not None:
        _check_gate(sections["register"].gate, data, problems)
    return problems


def check_evaluation_before_spend(config: EvaluationConfig) -> None:
    """Raise ConfigError with every problem of an evaluation, or MissingExtraError for missing packages."""
    _check_packages("evaluating", *_TRAIN_PACKAGES)
    problems: list[str] = []
    forms = ("prompts",) if config.rewards else get_args(RowForm)
    _check_data(config.data, _held_out(config.data), problems, forms)
    problems.extend(votes_not_read(config.data))
    _check_eval(config.eval, problems)
    problems += reward_option_faults(ScoringOptions(rewards=config.rewards))
    if problems:
        raise ConfigError(problems)


def check_promotion_before_spend() -> None:
    """Raise MissingExtraError where the packages that a promotion needs are missing."""
    _check_packages("judging", *_TRAIN_PACKAGES)


def _check_packages(what: str, *names: str) -> None:
    import importlib.util

    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"{what} needs {', '.join(missing)}; fix: pip install 'mlflow-finetune[train]'")


def _is_installed(distribution: str) -> bool:
    import importlib.metadata

    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _check_data(
    data: DataSettings, files: list[DataFileSettings], problems: list[str], forms: Sequence[RowForm]
) -> None:
    """Add what is wrong with these files. Each must hold rows of one of the forms."""
    for file in data_files(files):
        path = file.path
        try:
            check_location(str(path))
            if not is_remote(str(path)):  # The worker downloads remote data and checks it.
                settings = file.settings(column_settings(data))
                readable_form([row for _, row in peek(path)], settings, forms)
        except FinetuneError as error:
            problems.append(_with_path(str(error), path))
    if data.chat_template is not None and (fault := _text_file_fault(data.chat_template)):
        problems.append(f"data.chat_template = {data.chat_template}: {fault}")


def _check_eval(settings: EvalSettings, problems: list[str]) -> None:
    if settings.forgetting and (fault := _text_file_fault(settings.forgetting)):
        problems.append(f"eval.forgetting = {settings.forgetting}: {fault}")
    for metric in settings.metrics if settings.metrics != "auto" else []:
        if metric.endswith(".py") and (fault := _text_file_fault(metric)):
            problems.append(f"eval.metrics = {metric}: {fault}")


def _check_gate(gate: GatePolicy | None, data: DataSettings, problems: list[str]) -> None:
    for regression in gate.regressions if gate is not None else ():
        path = Path(regression.data)
        try:
            check_location(str(path))
            if str(path).startswith(VOTES):
                local_copy(str(path), path)
            interpret([row for _, row in peek(path)], replace(column_settings(data), group=None))
        except FinetuneError as error:
            problems.append(f"register.gate.regressions: {_with_path(str(error), path)}")


def _check_base(base: BaseModelSettings, max_length: int | None, problems: list[str]) -> None:
    package = FLASH_PACKAGES.get(base.attn_implementation)
    if package is not None and not _is_installed(package):
        problems.append(
            f"base_model.attn_implementation = {shown(base.attn_implementation)}: the package {package} is not installed; "
            "fix: install it, or use auto"
        )
    try:
        folder = local_folder(base.name)
        if folder is None:
            check_hub_name(base.name)
        else:
            if base.revision is not None:
                problems.append(
                    f"base_model.revision = {shown(base.revision)}: a folder on this disk has no revisions; fix: remove it"
                )
            check_base_files(folder, trust_remote_code=base.trust_remote_code, max_length=max_length)
    except FinetuneError as error:
        problems.append(str(error))


def _text_file_fault(name: str) -> str | None:
    """Return why this is not a non-empty text file, or None. Reads the first 64 KiB only."""
    if os.path.isdir(name):
        return "is a folder; fix: name a file in it"
    if not os.path.exists(name):
        return "no such file; fix: check the path"
    try:
        with open(name, "rb") as stream:
            head = stream.read(_HEAD_BYTES)
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except OSError as error:
        return f"cannot be read: {error.strerror}; fix: check its permissions"
    except UnicodeDecodeError as error:
        return f"not UTF-8 text (byte {error.start}); fix: save it as UTF-8"
    return None if head.strip() else "is empty; fix: check the program that wrote it"


def _held_out(data: DataSettings) -> list[DataFileSettings]:
    return data.eval if isinstance(data.eval, list) else []


def _with_path(message: str, path: Path) -> str:
    return message if path.name in message else f"{path}: {message}"
