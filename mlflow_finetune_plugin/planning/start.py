"""Plan a training that continues a version: what the version decides, and what a recipe may not say otherwise.

The version decides the adaptation, the options that give its adapter its shape, the quantisation of the base, and the
tokenizer with its chat template. A recipe may leave these out or repeat them. Everything else is the recipe's.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.facts import BaseFacts, Reasons
from mlflow_finetune_plugin.base_models.loading import BaseModel, load_picture_inputs
from mlflow_finetune_plugin.base_models.weights_digest import base_digest
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.data.conversations.templates import with_settings
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import BaseModelError, ConfigError, MissingExtraError
from mlflow_finetune_plugin.logged_models.loading import check_tokenizer_of
from mlflow_finetune_plugin.logged_models.start_version import START_FOLDER, StartVersion, check_fits, fetch_start
from mlflow_finetune_plugin.methods import Adaptation, load_method
from mlflow_finetune_plugin.planning.step_trace import adapted_model
from mlflow_finetune_plugin.store.clients import command_client
from mlflow_finetune_plugin.store.start_model import KEY

_SAME_ADAPTER = frozenset(("lora", "qlora"))
"""Adaptations that differ in how the base is held, and write the same adapter."""
_TEMPLATE_FILE = "chat_template.jinja"


def continued_config(config: RunConfig, start: StartVersion, reasons: Reasons) -> RunConfig:
    """Return the config with everything that the start version decides.

    Raises:
        ConfigError: The recipe says otherwise. Every problem has both values and a fix.
    """
    adaptation = _adaptation(config, start, reasons)
    problems: list[str] = []
    if load_method("objective", config.objective).MODEL == "score":
        problems.append(f"{config.objective} trains a reward model, which starts from the base; fix: leave {KEY} out")
    update = {
        "start_from": start.uri,
        "is_adaptation_default": False,
        "adaptation": adaptation,
        "options": _options(config, start, adaptation, reasons, problems),
        "base_model": _base_settings(config, start, reasons, problems),
        "data": _data_settings(config, start, reasons, problems),
    }
    if problems:
        raise ConfigError([f"{KEY} = {start.uri}: {problem}" for problem in problems])
    return config.model_copy(update=update)


def start_of(config: RunConfig, folder: Path) -> StartVersion | None:
    """Return the version that a config starts from, for a command that trains nothing; None without one.

    ``folder`` receives a copy of its files. Raises ConfigError, ReloadError, TrackingError.
    """
    return fetch_start(command_client(), config.start_from, folder / START_FOLDER) if config.start_from else None


def check_base(start: StartVersion, base: BaseModel) -> None:
    """Check that the version was trained on this base, and that its chat template can be rendered.

    Raises:
        ConfigError: It was trained on another base.
        ReloadError: Its chat template does not render in bounded time and memory.
    """
    trained_on, digest = start.card["base_model"], base_digest(base.folder)
    if trained_on["digest"] != digest:
        raise ConfigError(
            [
                f"{KEY} = {start.uri}: was trained on {trained_on['name']} (digest {trained_on['digest'][:12]}), and the base of "
                f"this training is {base.name} (digest {digest[:12]}); fix: base_model: {trained_on['name']}, or a version of "
                f"{base.name}"
            ]
        )
    check_tokenizer_of(start.folder, start.uri, base.folder)


def continued_options(
    start: StartVersion,
    base: BaseModel,
    facts: BaseFacts,
    adaptation: Adaptation,
    options: Any,
    reasons: Reasons,
) -> Any:
    """Return the adaptation's resolved options, with which the version's adapter was found to fit.

    Raises:
        BaseModelError: An option is left to resolve, and this base cannot take it.
        ConfigError: The adapter does not fit.
    """
    if "auto" in options.model_dump().values():
        options = adaptation.resolve(options, facts, reasons)
    check_fits(adapted_model(base, adaptation, options, seed=0).model, start)
    return options


def renderer_of(start: StartVersion, base: BaseModel) -> ChatRenderer:
    """Return the renderer with the version's tokenizer and chat template. No code in the version's folder is run."""
    tokenizer = AutoTokenizer.from_pretrained(start.tokenizer)
    return ChatRenderer(tokenizer, weights=base.folder, pictures=load_picture_inputs(base))


def _adaptation(config: RunConfig, start: StartVersion, reasons: Reasons) -> str:
    theirs = str(start.card["adaptation"])
    load_method("adaptation", theirs)  # it is not installed here: the error lists those that are
    if config.is_adaptation_default and config.adaptation != theirs:
        reasons["adaptation"] = f"{theirs}: that of {start.uri}"
        return theirs
    if config.adaptation == theirs or {config.adaptation, theirs} <= _SAME_ADAPTER:
        return config.adaptation
    raise ConfigError(
        [
            f"{KEY} = {start.uri}: is an adapter of {theirs}, and the adaptation of this training is {config.adaptation}; "
            f"fix: -P adaptation={theirs}, or leave {KEY} out"
        ]
    )


def _options(
    config: RunConfig, start: StartVersion, name: str, reasons: Reasons, problems: list[str]
) -> dict[str, Any]:
    """Return the recipe's options, with those of the adapter's shape as the version has them."""
    adaptation, objective = load_method("adaptation", name), load_method("objective", config.objective)
    card_options = start.card.get("options") or {}
    trained_with = {key: value for key, value in card_options.items() if key in adaptation.Options.model_fields}
    try:
        continued = adaptation.start_options(start.adapter_config, trained_with)
        adaptation.Options.model_validate(continued)
    except (BaseModelError, ValidationError, KeyError) as error:
        raise ConfigError([f"{KEY} = {start.uri}: its adapter cannot be continued: {error}"]) from error
    known = {*adaptation.Options.model_fields, *objective.Options.model_fields}
    for key, given in config.options.items():
        if key not in known:
            problems.append(f"options.{key} = {given!r}: {name}, its adaptation, has no such option; fix: leave it out")
        elif key in continued and not any(_is_same(given, value) for value in (continued[key], trained_with.get(key))):
            saved = "" if _is_same(trained_with.get(key), continued[key]) else f" ({continued[key]!r} as saved)"
            problems.append(
                f"options.{key} = {given!r}: the version has {trained_with.get(key, continued[key])!r}{saved}; fix: leave it out"
            )
    reasons |= {f"options.{key}": f"{_text(value)}: as in {start.uri}" for key, value in continued.items()}
    return {**config.options, **continued}


def _is_same(given: Any, value: Any) -> bool:
    """Return whether a recipe's option leaves a version's as it is. The order of names does not matter."""
    if isinstance(given, list) and isinstance(value, list):
        return sorted(map(str, given)) == sorted(map(str, value))
    return bool(given in ("auto", value))


def _base_settings(config: RunConfig, start: StartVersion, reasons: Reasons, problems: list[str]) -> Any:
    """Return the base's settings, quantised as the version's base was."""
    ours, theirs = config.base_model.quantization, start.card["base_model"]["quantization"]
    if ours is None and theirs is not None:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise MissingExtraError("a quantised base needs bitsandbytes; fix: pip install 'mlflow-finetune[train]'")
        reasons["base_model.quantization"] = f"{theirs}: as in {start.uri}"
        return config.base_model.model_copy(update={"quantization": theirs})
    if ours != theirs:
        held = "is not quantised" if theirs is None else f"is held in {theirs}"
        problems.append(
            f"base_model.quantization = {ours}: the base of the version {held}, and on another one it would answer otherwise; "
            f"fix: {'-P adaptation=lora without base_model.quantization' if theirs is None else f'-P quantization={theirs}'}"
        )
    return config.base_model


def _data_settings(config: RunConfig, start: StartVersion, reasons: Reasons, problems: list[str]) -> Any:
    """Return the data section with the settings of the version's chat template."""
    data, theirs = config.data, dict(start.card.get("chat_template_kwargs") or {})
    ours = data.chat_template_kwargs
    if ours and ours != theirs:
        problems.append(
            f"data.chat_template_kwargs = {json.dumps(ours)}: the version was trained with {json.dumps(theirs)}; fix: leave it out"
        )
    if data.chat_template and not _is_template_of(start, data.chat_template, theirs):
        problems.append(
            f"data.chat_template = {data.chat_template}: the version answers with another chat template, and keeps it; "
            "fix: leave it out, or train from the base"
        )
    if theirs and not ours:
        reasons["data.chat_template_kwargs"] = f"{json.dumps(theirs)}: as in {start.uri}"
    return data.model_copy(update={"chat_template_kwargs": theirs})


def _is_template_of(start: StartVersion, path: str, settings: dict[str, Any]) -> bool:
    file = start.tokenizer / _TEMPLATE_FILE
    text = Path(path).read_text(encoding="utf-8")
    return file.is_file() and file.read_text(encoding="utf-8") == with_settings(text, settings)


def _text(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
