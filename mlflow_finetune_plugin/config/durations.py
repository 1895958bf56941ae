"""Durations as people write them: ``90``, ``90s``, ``10m``, ``2h``, ``1d``."""

from __future__ import annotations

import re

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WRITTEN = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)")


def seconds_of(text: str) -> float:
    """Return a duration in seconds. Raises ValueError, with the fix, for a text that is not a duration above 0."""
    match = _WRITTEN.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS_S[match[2]] if match is not None else 0.0
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a duration; fix: a number with s, m, h or d, e.g. 10m")
    return seconds
