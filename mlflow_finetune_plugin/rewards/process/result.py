"""Read a result of a user's code as a finite number with a reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mlflow_finetune_plugin.rewards.completion import PartScore

_FIX = "fix: return a finite number, a bool, None, or (number, reason)"
_LONGEST = 60


class NotANumberError(Exception):
    """A result is not a reward; the text says why."""


def score_of(result: Any) -> PartScore:
    """Read a number, a bool, None, ``(number, reason)`` or ``{"score": number, "reason": ...}``.

    Raises:
        NotANumberError: it is none of these, or not finite.
    """
    if isinstance(result, Mapping):
        if "score" not in result:
            raise NotANumberError(f"returned a dict without 'score'; {_FIX}")
        return _with_reason(result["score"], result.get("reason"))
    if isinstance(result, (tuple, list)):
        if len(result) != 2 or not (result[1] is None or isinstance(result[1], str)):
            raise NotANumberError(f"returned a {type(result).__name__} of {len(result)} values; {_FIX}")
        return _with_reason(result[0], result[1])
    return _with_reason(result, None)


def _with_reason(value: Any, reason: Any) -> PartScore:
    return PartScore(number_of(value), None if reason is None else str(reason))


def number_of(value: Any) -> float | None:
    """Return a finite float, also of a bool and of numpy's and torch's numbers; None stays None."""
    if value is None:
        return None
    if not (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")):
        raise NotANumberError(f"returned {_shown(value)} of type {type(value).__name__}; {_FIX}")
    try:
        number = float(value)
    except Exception as error:  # __float__ of any class
        raise NotANumberError(
            f"returned a {type(value).__name__} that is not a number ({type(error).__name__}); {_FIX}"
        ) from error
    if not math.isfinite(number):
        raise NotANumberError(f"returned {number}; {_FIX}")
    return number


def _shown(value: Any) -> str:
    try:
        return repr(value)[:_LONGEST]
    except Exception:  # __repr__ of any class
        return "a value"
