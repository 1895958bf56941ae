"""Axolotl's types of preference data: pairs and ratings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.config.dataset_lists.axolotl_turns import ROLE_AND_CONTENT, turns_layout
from mlflow_finetune_plugin.config.dataset_lists.entries import check_keys
from mlflow_finetune_plugin.errors import ConfigError

ENTRY_KEYS = frozenset(
    ("path", "type", "name", "split", "ds_type", "data_files", "field_messages", "field", "message_property_mappings")
)
_FORMS = {None: "pairs", "dpo": "pairs", "ipo": "pairs", "simpo": "pairs", "orpo": "pairs", "kto": "rated"}
"""What the rows of Axolotl's preference types are, by its setting ``rl``. A reward model has none, and pairs."""
_PROMPTS = {"icr": "input", "intel": "question", "prompt_pairs": "prompt", "ultra": "prompt"}
"""The column of the prompt, by the second half of a type such as ``chatml.intel``. The first half names a chat template."""
_TYPES = frozenset(
    (
        *(f"{template}.{rows}" for template in ("chatml", "llama3") for rows in ("argilla", "argilla_chat", *_PROMPTS)),
        *("chat_template.default", "chat_template.argilla", "chat_template.argilla_chat", "user_defined.default"),
        *("bradley_terry.chat_template", "bradley_terry.llama3"),
    )
)
_FIELDS = ("prompt", "system", "chosen", "rejected", "completion", "label")
_SAME_ROLES = {role: [role] for role in ("user", "assistant", "system", "tool")}


def is_preference(kind: Any) -> bool:
    """Return whether a type reads preferences: by its name, or by the fields that it names."""
    if isinstance(kind, Mapping):
        return any(f"field_{part}" in kind for part in _FIELDS if part != "system")
    return kind in _TYPES


def preference_layout(where: str, entry: Mapping[str, Any], rl: Any) -> dict[str, Any]:
    """Return the layout of a type of preferences. The chat template that its name states is the base's here.

    Args:
        where: The entry, for errors.
        entry: The entry, without what happens here anyway.
        rl: Axolotl's setting for the whole configuration, which says whether rows are pairs or rated.
    """
    kind = entry["type"]
    form = _FORMS.get(rl)
    if form is None:
        raise ConfigError(
            [f"{where}: type = {kind!r}: has no rows for rl = {rl!r}; fix: rl: dpo, ipo, simpo, orpo or kto"]
        )
    fields = frozenset(f"field_{part}" for part in ("messages", *_FIELDS))
    formats = frozenset(f"{part}_format" for part in _FIELDS)
    if isinstance(kind, Mapping) or kind == "user_defined.default":
        own = kind if isinstance(kind, Mapping) else {key: entry[key] for key in entry if key in fields | formats}
        check_keys(where, entry, (ENTRY_KEYS | fields | formats) if own is not kind else ENTRY_KEYS)
        return _named_columns(where, own, form)
    roles = entry.get("roles") or {}
    is_usual = all(_SAME_ROLES.get(role) == names for role, names in roles.items())
    check_keys(where, entry, ENTRY_KEYS | fields | (frozenset(("roles",)) if is_usual else frozenset()))
    mappings = entry.get("message_property_mappings") or {}
    if "tags" in turns_layout(where, {**ROLE_AND_CONTENT, **mappings}, "messages"):
        raise ConfigError(
            [
                f"{where}: message_property_mappings = {mappings}: has no equal here for preferences; fix: name the fields role and content"
            ]
        )
    return _columns(kind, entry, form)


def _columns(kind: str, entry: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return the layout of a type whose name says which columns it reads."""
    rows = "icr" if kind.startswith("bradley_terry.") else kind.partition(".")[2]
    prompt = {"prompt": _PROMPTS[rows]} if rows in _PROMPTS else {}
    if rows == "default":
        prompt = {"prompt": entry.get("field_messages", "messages")}
    if form == "pairs":
        sides = {part: entry[f"field_{part}"] for part in ("chosen", "rejected") if f"field_{part}" in entry}
        sides = sides or ({} if rows == "argilla" else {"chosen": "chosen", "rejected": "rejected"})
        return {"layout": "preference", **({"columns": {**prompt, **sides}} if prompt or sides else {})}
    if rows == "argilla_chat":
        return {"layout": "rated", "columns": {"messages": "completion", "label": "label"}}
    prompt = prompt or {"prompt": "instruction"}
    return {"layout": "rated", "columns": {**prompt, "completion": "completion", "label": "label"}}


def _named_columns(where: str, kind: Mapping[str, Any], form: str) -> dict[str, Any]:
    """Return the layout of a type that names its columns."""
    parts = ("prompt", "chosen", "rejected") if form == "pairs" else ("prompt", "completion", "label")
    columns = {part: str(kind.get(f"field_{part}") or part) for part in parts}
    known = {"field_system", *(f"field_{part}" for part in parts)}
    for part in parts:
        text = kind.get(f"{part}_format")
        if text in (None, f"{{{part}}}", f"{{{columns[part]}}}"):
            known.add(f"{part}_format")
            continue
        raise ConfigError(
            [
                f"{where}: type.{part}_format = {text!r}: has no equal here, because the base's chat template writes prompts and "
                "answers; fix: remove it, or name the file in data.train and compose its prompts with data.prompt_template"
            ]
        )
    check_keys(f"{where}: type", kind, frozenset(known))
    system = kind.get("field_system")
    named = {"system": str(system)} if system and system != "system" else {}  # Axolotl's rows may lack the usual column
    return {"layout": "preference" if form == "pairs" else "rated", "columns": {**named, **columns}}
