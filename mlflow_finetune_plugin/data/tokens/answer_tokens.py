"""Where answers begin among the tokens of a text, and whether the tokens before are those that inference will see.

Tokenizers cut a text at added tokens first and treat the parts alone. So ``ids(P)`` are how the ids of a text that begins
with P begin exactly when the window, from the last added token before the answer on, tokenises to the same ids alone. The
same holds for the last blank at which this tokenizer always cuts (pretokens.py).
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
    """One text to tokenise, with the (start, end) of each answer in it, in characters."""

    text: str
    spans: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """``first``: its first token, None where a token straddles the border; ``limit``: the token behind its turn, or a later
    one when the first end-of-turn token before it is the turn's own.
    """

    first: int | None
    limit: int


@dataclass(slots=True)
class _Border:
    """Where an answer stands among the tokens of its piece.

    ``window`` is the text before it from a certain cut on, ``anchor`` that cut's token and ``first`` the answer's own;
    one of the two may be unknown, since the tokens of the window lie between them. ``limit`` is the token behind the turn.
    """

    window: str
    anchor: int
    first: int
    limit: int


class AnswerFinder:
    """A tokenizer. ``turn_end``: what the template writes behind an answer, its end-of-turn token in it; None when unknown."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.cuts_at_blanks = cuts_at_blanks(tokenizer)
        self.added_tokens = _added_tokens(tokenizer)
        self.is_plain = self._is_backend_alone()
        self.turn_end: str | None = None
        self._windows: dict[str, list[int]] = {}

    def locate(self, pieces: Sequence[Piece]) -> list[tuple[list[int], list[AnswerSpan]]]:
        """Of each piece its token ids and where its answers stand."""
        cuts = [self._cuts(piece) for piece in pieces]
        by_cuts = self._located_by_cuts([(p, c) for p, c in zip(pieces, cuts, strict=True) if c])
        by_offsets = self._located_by_offsets([p for p, c in zip(pieces, cuts, strict=True) if not c])
        bordered = [next(by_cuts) if c else next(by_offsets) for c in cuts]
        self._fill_windows([border.window for _, borders in bordered for border in borders])
        located = [(ids, [AnswerSpan(self._first(b, ids), b.limit) for b in borders]) for ids, borders in bordered]
        self._forget_windows()
        return located

    def encodings(self, texts: list[str]) -> list[Any]:
        """An encoding (ids, offsets) per text, without special tokens of the tokenizer's own."""
        if not texts:
            return []
        if self._is_backend_enough():
            return list(self._tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False))
        return list(self._call(texts).encodings)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """The same without offsets, which cost a quarter of the time."""
        if texts and self._is_backend_enough():
            encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        return [encoding.ids for encoding in self.encodings(texts)]

    def _is_backend_enough(self) -> bool:
        backend = self._tokenizer.backend_tokenizer
        return self.is_plain and backend.padding is None and backend.truncation is None

    def _is_backend_alone(self) -> bool:
        """Whether transformers adds nothing to what the tokenizer below it does: then the detour is left out."""
        probe = [" A\n b\u00e9 <x>  42", "pear"]
        self._tokenizer.backend_tokenizer.no_padding()
        self._tokenizer.backend_tokenizer.no_truncation()
        alone = self._tokenizer.backend_tokenizer.encode_batch(probe, add_special_tokens=False)
        return [encoding.ids for encoding in alone] == [encoding.ids for encoding in self._call(probe).encodings]

    def _call(self, texts: list[str]) -> Any:
        return self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)

    def _cuts(self, piece: Piece) -> list[int]:
        """Per answer a blank before it at which the tokenizer cuts for certain; empty where one of them has none.

        Only where the end-of-turn token is then known to be the next one: the turn ends the text, or as the template ends turns.
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
        """Ids and borders of pieces that are tokenised part by part, since parts give what the whole would (pretokens.py)."""
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
        """Where a window that begins at a blank stands among the tokens need not be known: it holds no second such blank."""
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
        """The last added token before ``first`` and where it starts in ``text``; the text's start where there is none."""
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
        """Keep only what comes again: templates with added tokens have the same short window in every row."""
        if len(self._windows) > _CACHED_WINDOWS:
            self._windows = {}
        for window in [window for window in self._windows if len(window) > _CACHED_WINDOW_CHARS]:
            del self._windows[window]

    def _first(self, border: _Border, ids: list[int]) -> int | None:
        """The answer's first token where the tokens before it are those of the window alone, else None."""
        window = self._windows[border.window]
        first = border.anchor + len(window) if border.first == _UNKNOWN else border.first
        anchor = first - len(window) if border.anchor == _UNKNOWN else border.anchor
        return first if anchor >= 0 and window == ids[anchor:first] else None


def _added_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and words of the added tokens, at which a text is cut; their ids alone may also stand for other text."""
    return {i: token.content.strip() for i, token in tokenizer.added_tokens_decoder.items()}


def _token_at(encoding: Any, position: int, tokens: int) -> int:
    """The token that holds the character at ``position``, or the next one where none does (offsets may be trimmed)."""
    token = encoding.char_to_token(position)
    if token is not None:
        return int(token)
    return next((i for i in range(tokens) if encoding.token_to_chars(i)[0] >= position), tokens)
