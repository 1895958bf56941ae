"""Bound the time that a regular expression for module names can take.

Python's matcher tries every way in which a pattern can divide a name. In a pattern such as ``(x+x+)+y`` their number doubles
with each character, and the process stands still meanwhile. The bound is calculated from the pattern alone, so no pattern
has to be tried.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

_LONGEST = 4000
_NAME_LENGTH = 128  # characters; names of modules are shorter
_MOST_WAYS = 1_000_000
_SINGLE = frozenset(("LITERAL", "NOT_LITERAL", "ANY", "IN", "CATEGORY", "AT", "RANGE"))
_REPEATS = frozenset(("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"))


@lru_cache(maxsize=10_000)
def pattern_fault(pattern: str) -> str | None:
    """Return why a pattern must not be matched with names of modules; None if it may.

    Args:
        pattern: A regular expression for the whole name, or a plain name.
    """
    if len(pattern) > _LONGEST:
        return f"has {len(pattern):,} characters, {_LONGEST:,} are allowed"
    try:
        parsed = _parser().parse(pattern)
        ways = _ways(parsed)
    except (re.error, RecursionError, OverflowError) as error:
        return f"not a valid regular expression: {error}"
    except _UnboundedError as error:
        return f"matching it could take too long: it has {error}"
    if ways > _MOST_WAYS:
        return "matching it could take too long: it has too many repetitions and alternatives"
    return None


class _UnboundedError(ValueError):
    """A part of a pattern whose matching time has no small bound."""


def _parser() -> Any:
    """Return Python's own parser of regular expressions, which has no public name."""
    return re._parser  # type: ignore[attr-defined]


def _ways(parsed: Iterable[tuple[Any, Any]]) -> int:
    """Return a bound on the ways in which a sequence matches a name."""
    ways = 1
    for operation, value in parsed:
        ways *= _ways_of(str(operation), value)
        if ways > _MOST_WAYS:
            break
    return ways


def _ways_of(operation: str, value: Any) -> int:
    if operation in _SINGLE:
        return 1
    if operation == "SUBPATTERN":
        return _ways(value[-1])
    if operation == "BRANCH":
        return sum(map(_ways, value[1]))
    if operation in _REPEATS:
        return _ways_of_repeat(*value)
    raise _UnboundedError("a lookaround, a backreference or a conditional")


def _ways_of_repeat(fewest: int, most: int, repeated: Any) -> int:
    parts = list(repeated)
    if len(parts) == 1 and str(parts[0][0]) in _SINGLE:
        return min(int(most), _NAME_LENGTH) - min(int(fewest), _NAME_LENGTH) + 1
    if int(most) > 1:
        raise _UnboundedError("a repeated group")
    return _ways(parts) + 1
