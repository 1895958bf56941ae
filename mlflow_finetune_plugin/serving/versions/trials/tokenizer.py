"""Load a version's ``tokenizer.json`` in a process with limits, and encode texts that bad ones take long for.

Its normalizer, pre-tokenizer and decoder hold regular expressions, and its vocabulary may be of any size. Engines load it, and
encode every prompt of all versions that share them. The child process is ``python -m`` of this module; it imports ``tokenizers`` only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.trials.limited_process import run_limited, set_limits

_FILE = "tokenizer.json"
_LARGEST_FILE = 64 * 2**20
_LIMIT_S = 60.0
_CPU_S = 10
_MEMORY_BYTES = 4 * 2**30
_LARGEST_STATE = 4096
_NO_STATE = {"padding": None, "truncation": None}
_PARTS_WITH_PATTERNS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_UNITS = ("a", "A", "0", " ", "\n", "!", "é", "\u4f60", "\U0001f600", "\u0301", "a ", "a1", "a!", "<|", " \n")
_SHORT, _LONG = 2000, 50_000
_MOST_CHARACTERS = 64
"""Characters of the patterns themselves that are repeated, because an expression may wait for one of them."""
_LARGEST_GROWTH = 64
"""Tokens for each character, and characters for each token. Known tokenizers need at most 18, for a character that NFKC unfolds."""


def try_tokenizer(tokenizer: Path, base: Path, name: str) -> None:
    """Load and use the tokenizer of a version, unless it is its base's. It blocks.

    Args:
        tokenizer: The folder of the version's tokenizer.
        base: The folder of its base.
        name: The version, for messages.

    Raises:
        ServingError: It is too large, or takes too much time or memory, or fails.
    """
    path = tokenizer / _FILE
    fix = "fix: train it with the tokenizer of its base, and register it again"
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ServingError(f"{name}: {_FILE} has {size:,} bytes, {_LARGEST_FILE:,} are allowed; {fix}")
    if (base / _FILE).is_file() and _is_same(path, base / _FILE):
        return
    _, fault = run_limited(__name__, str(path.resolve()), _LIMIT_S)
    if fault is not None:
        raise ServingError(
            f"{name}: {_FILE} cannot be used within {_CPU_S} s and {_MEMORY_BYTES:,} bytes: {fault}; {fix}"
        )


def _is_same(path: Path, of_base: Path) -> bool:
    """Return whether a tokenizer is that of its base, except for the padding and truncation of its last use, which are saved too."""
    if path.stat().st_size > of_base.stat().st_size + _LARGEST_STATE:
        return False  # not read here, because it may be of any size
    try:
        content, expected = (json.loads(file.read_text(encoding="utf-8")) for file in (path, of_base))
        padding = content.get("padding") or {}
        is_bounded = not padding or (padding["strategy"] == "BatchLongest" and not padding.get("pad_to_multiple_of"))
        return is_bounded and {**content, **_NO_STATE} == {**expected, **_NO_STATE}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return False  # not a tokenizer, which the trial reports


def main() -> None:
    """Try the tokenizer whose path is on stdin."""
    set_limits(_CPU_S, _MEMORY_BYTES)
    path = Path(sys.stdin.read())
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        for text in _texts(json.loads(path.read_text(encoding="utf-8"))):
            _use(tokenizer, text)
    except BaseException as error:  # tokenizers raises a BaseException where its Rust code panics
        sys.exit(f"{type(error).__name__}: {error}")


def _use(tokenizer: Any, text: str) -> None:
    """Encode and decode a text. Raises ValueError for a result that is out of proportion."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if len(ids) > _LARGEST_GROWTH * (len(text) + 1):
        raise ValueError(f"{len(text):,} characters become {len(ids):,} tokens")
    decoded = tokenizer.decode(ids)
    longest = max((len(tokenizer.id_to_token(token) or "") for token in set(ids)), default=0)
    if len(decoded) > max(_LARGEST_GROWTH, longest) * (len(ids) + 1):
        raise ValueError(f"{len(ids):,} tokens become {len(decoded):,} characters")


def _texts(content: dict[str, Any]) -> Iterator[str]:
    """Yield repeated characters: usual ones, also many of them, and those that the patterns contain.

    An end that does not match lets an expression try all other ways. It holds what the patterns contain, because a search that finds
    no such character does not even begin.
    """
    characters = _characters_of_patterns(content)
    for end in ("", "\0", "\0" + "".join(characters)):
        yield from (unit * (_SHORT // len(unit)) + end for unit in (*_UNITS, *characters))
        yield from (unit * (_LONG // len(unit)) + end for unit in _UNITS)


def _characters_of_patterns(content: dict[str, Any]) -> list[str]:
    texts = (text for part in _PARTS_WITH_PATTERNS for text in _patterns_in(content.get(part)))
    return list(dict.fromkeys(character for text in texts for character in text))[:_MOST_CHARACTERS]


def _patterns_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (str(value[kind]) for kind in ("Regex", "String") if isinstance(value.get(kind), str))
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _patterns_in(item)


if __name__ == "__main__":
    main()
