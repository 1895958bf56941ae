"""The characters of a text that a tokenizer cannot represent: it gives its unknown token for them, or drops them without a trace."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_RARE = "☃ß漢ё#\u2028"
"""A tokenizer that represents these has a token for every byte, and knows all characters."""
_WRITTEN = ("L", "N", "P", "S")
"""Unicode's letters, numbers, punctuation and symbols. Blanks, marks and controls may be normalised, which does no harm."""


class UnknownCharacters:
    """Finds the characters that a tokenizer does not know. Each one is tried once.

    Attributes:
        knows_all: Whether the tokenizer knows every character, as one with a token for each byte does.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._is_known: dict[str, bool] = {}
        self.knows_all = all(_form(char) in self._written(char) for char in _RARE if _is_written(char))

    def in_text(self, text: str) -> str:
        """Return the unknown characters of a text, each once in their order; case and compatible forms do not count."""
        unknown = [char for char in dict.fromkeys(text) if not self._knows(char)]
        if not unknown:
            return ""
        written = self._written(text)  # a tokenizer of words may know a character as a part of words alone
        return "".join(char for char in unknown if _form(char) not in written)

    def _knows(self, char: str) -> bool:
        if char not in self._is_known:
            self._is_known[char] = not _is_written(char) or _form(char) in self._written(char)
        return self._is_known[char]

    def _written(self, text: str) -> str:
        """Return what is left of a text after its tokens, for comparison."""
        ids = self._tokenizer.encode(text, add_special_tokens=False)
        return _form(str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)))


def _is_written(char: str) -> bool:
    return unicodedata.category(char).startswith(_WRITTEN)


def _form(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
