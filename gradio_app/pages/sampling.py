"""SamplingSettings settings as text: an empty field of Gradio's Number becomes a zero once it is displayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr

from gradio_app.chat.client import SamplingSettings
from gradio_app.chat.session import SessionError

MAX_TOKENS, SEED = "Max tokens", "Seed"
_LARGEST_SEED = 2**63 - 1
_BOUNDS: dict[str, tuple[float, float, bool]] = {
    "Temperature": (0, 2, False),
    "Top p": (0.01, 1, False),
    MAX_TOKENS: (1, 100_000, True),
    SEED: (-_LARGEST_SEED, _LARGEST_SEED, True),
}
SIDE_FIELDS = tuple(_BOUNDS)
"""The labels of a side's own settings, in the order in which ``own_sampling`` takes them."""


def number_field(label: str, empty: str, value: str = "", **more: Any) -> gr.Textbox:
    """Return a field. ``empty`` says which value applies while the field is empty."""
    mode = gr.InputHTMLAttributes(autocomplete="off", spellcheck=False)
    return gr.Textbox(value, label=label, placeholder=empty, max_length=40, lines=1, html_attributes=mode, **more)


def number_of(label: str, text: Any) -> float | int | None:
    """Return the number in the field of that label, or None where it is empty.

    Raises SessionError for anything else.
    """
    stripped = "" if text is None else str(text).strip()
    if not stripped:
        return None
    lowest, highest, is_whole = _BOUNDS[label]
    kind = "a whole number" if is_whole else "a number"
    fault = f"{label} is {stripped!r}; write {kind} from {lowest:,} to {highest:,}, or leave the field empty."
    if label == SEED:
        fault = f"{label} is {stripped!r}; write {kind}, or leave the field empty."
    try:
        number: float | int = int(stripped) if is_whole else float(stripped.replace(",", "."))
    except ValueError as error:
        raise SessionError(fault) from error
    if not (math.isfinite(number) and lowest <= number <= highest):
        raise SessionError(fault)
    return number


def shared_sampling(temperature: Any, top_p: Any, max_tokens: Any, seed: Any) -> SamplingSettings:
    """Return the settings that apply to all sides. Raises SessionError."""
    return SamplingSettings(
        temperature=_slid("Temperature", temperature),
        top_p=_slid("Top p", top_p),
        max_tokens=_whole(MAX_TOKENS, max_tokens),
        seed=_whole(SEED, seed),
    )


def own_sampling(shared: SamplingSettings, texts: Sequence[str | None]) -> SamplingSettings | None:
    """Return a side's own settings over the shared ones, or None where all its fields are empty.

    Raises SessionError.
    """
    numbers = [number_of(label, text) for label, text in zip(SIDE_FIELDS, texts, strict=True)]
    if all(number is None for number in numbers):
        return None
    temperature, top_p = (None if number is None else float(number) for number in numbers[:2])
    max_tokens, seed = (None if number is None else int(number) for number in numbers[2:])
    return SamplingSettings(
        temperature=shared.temperature if temperature is None else temperature,
        top_p=shared.top_p if top_p is None else top_p,
        max_tokens=shared.max_tokens if max_tokens is None else max_tokens,
        seed=shared.seed if seed is None else seed,
    )


def _slid(label: str, value: Any) -> float:
    number = number_of(label, value)
    if number is None:
        raise SessionError(f"{label} is empty; write a number.")
    return float(number)


def _whole(label: str, text: Any) -> int | None:
    number = number_of(label, text)
    return None if number is None else int(number)
