"""Locate answers among the tokens of a text, and check that the tokens before them are those that inference will see.

Tokenizers first cut a text at added tokens and then tokenize each part alone. So the ids of a text start with ``ids(P)`` exactly
when the window between the last added token and the answer has the same ids on its own. The same holds for the last blank at
which this tokenizer always cuts (pretokens.py). Comparing windows is much faster than tokenizing every P.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_finetune_plugin.data.tokens.pretokens import cut_before, cuts_at_blanks

_UNKNOWN = -1
_CACHED_WINDOW_CHARS = 200
_CACHED_WINDOWS = 1000


@dataclass(slots=True)
class Piece:
    """A text to tokenize, with the (start, end) of each answer in characters, and the names of its pictures."""

    text: str
    spans: list[tuple[int, int]]
    pictures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """The tokens of one answer.

    Attributes:
        first: The index of its first token; None where one token covers the end of the prompt and the start of the answer.
        limit: The index after its turn. It may be later if the first end-of-turn token before it still ends this turn.
    """

    first: int | None
    limit: int


@dataclass(slots=True)
class _Border:
    """The position of one answer among the tokens of its piece.

    Attributes:
        window: The text between a safe cut and the answer.
        anchor: The index of the token at that cut, or _UNKNOWN.
        first: The index of the answer's first token, or _UNKNOWN. It follows from ``anchor`` and the length of the window.
        limit: The index after the turn.
    """

    window: str
    anchor: int
    first: int
    limit: int


class AnswerFinder:
    """Finds answers with one tokenizer. ``turn_end`` is the text that the template writes after an answer; None if unknown."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.cuts_at_blanks = cuts_at_blanks(tokenizer)
        self.added_tokens = _added_tokens(tokenizer)
        self.is_plain = self._is_backend_alone()
        self.turn_end: str | None = None
        self._windows: dict[str, list[int]] = {}

    def locate(self, pieces: Sequence[Piece]) -> list[tuple[list[int], list[AnswerSpan]]]:
        """Return the token ids of each piece, and the span of each of its answers."""
        cuts = [self._cuts(piece) for piece in pieces]
        by_cuts = self._located_by_cuts([(p, c) for p, c in zip(pieces, cuts, strict=True) if c])
        by_offsets = self._located_by_offsets([p for p, c in zip(pieces, cuts, strict=True) if not c])
        bordered = [next(by_cuts) if c else next(by_offsets) for c in cuts]
        self._fill_windows([border.window for _, borders in bordered for border in borders])
        located = [(ids, [AnswerSpan(self._first(b, ids), b.limit) for b in borders]) for ids, borders in bordered]
        self._forget_windows()
        return located

    def encodings(self, texts: list[str]) -> list[Any]:
        """Encode each text to ids and offsets, without the special tokens that the tokenizer would add."""
        if not texts:
            return []
        if self._is_backend_enough():
            return list(self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        return list(self._call(texts).encodings)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Encode each text to ids only, because offsets take a quarter of the time."""
        if texts and self._is_backend_enough():
            encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return [encoding.ids for encoding in self.encodings(texts)]

    def _is_backend_enough(self) -> bool:
        backend = self._tokenizer.backend_tokenizer
        return self.is_plain and backend.padding is None and backend.truncation is None

    def _is_backend_alone(self) -> bool:
        """Return whether transformers gives the same ids as the tokenizer below it, which can then be called directly."""
        probe = [" A\n b\u00e9 <x>  42", "pear"]
        self._tokenizer.backend_tokenizer.no_padding()
        self._tokenizer.backend_tokenizer.no_truncation()
        alone = self._tokenizer.backend_tokenizer.encode_batch(probe, add_special_tokens=False)
        return [encoding.ids for encoding in alone] == [encoding.ids for encoding in self._call(probe).encodings]

    def _call(self, texts: list[str]) -> Any:
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)

    def _cuts(self, piece: Piece) -> list[int]:
        """Return for each answer a blank before it at which the tokenizer certainly cuts; empty if one answer has none.

        The turn must end the text or end as the template ends turns, so that the next end-of-turn token belongs to it.
        """
        if not self.cuts_at_blanks:
            return []
        cuts, before = [], 0
        for start, end in piece.spans:
            cut = cut_before(piece.text, start)
            ends_here = end == len(piece.text) or (
                self.turn_end is not None and piece.text.endswith(self.turn_end, start, end)
            )
            if not cut or cut < before or not ends_here:
                return []
            cuts.append(cut)
            before = end
        return cuts

    def _located_by_cuts(self, pieces: list[tuple[Piece, list[int]]]) -> Iterator[tuple[list[int], list[_Border]]]:
        """Tokenize pieces part by part, which gives the same ids as the whole (pretokens.py), and yield ids and borders."""
        parts = [
            piece.text[a:b] for piece, cuts in pieces for a, b in zip([0, *cuts], [*cuts, len(piece.text)], strict=True)
        ]
        tokens = iter(self.ids(parts))
        for piece, cuts in pieces:
            ids, borders = next(tokens), []
            for cut, (start, _) in zip(cuts, piece.spans, strict=True):
                anchor = len(ids)
                ids = ids + next(tokens)
                borders.append(_Border(piece.text[cut:start], anchor, _UNKNOWN, len(ids)))
            yield ids, borders

    def _located_by_offsets(self, pieces: list[Piece]) -> Iterator[tuple[list[int], list[_Border]]]:
        for piece, encoding in zip(pieces, self.encodings([piece.text for piece in pieces]), strict=True):
            ids = encoding.ids
            yield ids, self._borders(piece, ids, encoding)

    def _borders(self, piece: Piece, ids: list[int], encoding: Any) -> list[_Border]:
        """Return the borders of a piece. A window that begins at a safe blank needs no anchor."""
        borders = []
        for start, end in piece.spans:
            first = _token_at(encoding, start, len(ids))
            begin = cut_before(piece.text, start) if self.cuts_at_blanks else 0
            anchor = _UNKNOWN
            if not begin:
                anchor, begin = self._anchor(piece.text, ids, encoding, first)
            limit = _token_at(encoding, end, len(ids)) if end < len(piece.text) else len(ids)
            borders.append(_Border(piece.text[begin:start], anchor, first, limit))
        return borders

    def _anchor(self, text: str, ids: list[int], encoding: Any, first: int) -> tuple[int, int]:
        """Return the last added token before ``first`` and its start in ``text``; (0, 0) where there is none."""
        for token in range(first - 1, 0, -1):
            if ids[token] in self.added_tokens:
                begin, end = encoding.token_to_chars(token)
                if begin and text[begin:end].strip() == self.added_tokens[ids[token]]:
                    return token, begin
        return 0, 0

    def _fill_windows(self, windows: list[str]) -> None:
        missing = [window for window in dict.fromkeys(windows) if window not in self._windows]
        if missing:
            self._windows.update(zip(missing, self.ids(missing), strict=True))

    def _forget_windows(self) -> None:
        """Keep only short windows, which repeat: a template with added tokens has the same one in every row."""
        if len(self._windows) > _CACHED_WINDOWS:
            self._windows = {}
        for window in [window for window in self._windows if len(window) > _CACHED_WINDOW_CHARS]:
            del self._windows[window]

    def _first(self, border: _Border, ids: list[int]) -> int | None:
        """Return the answer's first token if the tokens before it equal those of the window alone, else None."""
        window = self._windows[border.window]
        first = border.anchor + len(window) if border.first == _UNKNOWN else border.first
        anchor = first - len(window) if border.anchor == _UNKNOWN else border.anchor
        return first if anchor >= 0 and window == ids[anchor:first] else None


def _added_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the added tokens by id. Their text matters too, because the same id may also come from other text."""
    return {i: token.content.strip() for i, token in tokenizer.added_tokens_decoder.items()}


def _token_at(encoding: Any, position: int, tokens: int) -> int:
    """Return the token that covers the character at ``position``, or the next one (a tokenizer may trim its offsets)."""
    token = encoding.char_to_token(position)
    if token is not None:
        return int(token)
    return next((i for i in range(tokens) if encoding.token_to_chars(i)[0] >= position), tokens)
