"""Convert examples to readable text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, pairwise, repeat
from typing import Any

import datasets

from mlflow_finetune_plugin.data.report.pictures import picture_text
from mlflow_finetune_plugin.data.tokens.renderer import Example

MASK_SAMPLES = 5
_SHOWN_TOKENS = 80


class ExampleText:
    """Converts examples to text. The many tokens of a picture become its size and the start of its hash."""

    def __init__(
        self, tokenizer: Any, image_token_id: int | None = None, sizes: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        """Prepare to convert.

        Args:
            tokenizer: The tokenizer of the base.
            image_token_id: The token that stands for a part of a picture; None for a base that takes none.
            sizes: Width and height of each picture, by name.
        """
        self._tokenizer, self._image_token, self._sizes = tokenizer, image_token_id, sizes or {}

    def of(self, examples: datasets.Dataset) -> Callable[[int], str]:
        """Return a function that gives the first tokens of an example as text."""

        def beginning(number: int) -> str:
            example = examples[number]
            ids = self._with_single_tokens(example["input_ids"])
            text = self._decoded(ids[:_SHOWN_TOKENS], self._labels(ids, example.get("pictures") or ()))
            return text + ("..." if len(ids) > _SHOWN_TOKENS else "")

        return beginning

    def segments(self, example: Example) -> tuple[dict[str, object], ...]:
        """Return the example as decoded text, cut where loss starts and ends."""
        ids, mask = example.input_ids, example.loss_mask
        cuts = [0, *(i for i in range(1, len(ids)) if mask[i] != mask[i - 1]), len(ids)]
        pieces = [self._with_single_tokens(ids[a:b]) for a, b in pairwise(cuts)]
        labels = self._labels(list(chain(*pieces)), example.pictures)
        return tuple(
            {"text": self._decoded(piece, labels), "carries_loss": bool(mask[start])}
            for piece, start in zip(pieces, cuts, strict=False)
        )

    def _with_single_tokens(self, ids: Sequence[int]) -> list[int]:
        """Return the ids with one token for each run of tokens of pictures."""
        if self._image_token is None:
            return list(ids)
        return [t for i, t in enumerate(ids) if t != self._image_token or not i or ids[i - 1] != t]

    def _labels(self, ids: Sequence[int], pictures: Sequence[str]) -> Iterator[str]:
        """Return what to write for each run of tokens of pictures.

        Pictures without a text between them are one run. Some bases write other tokens between those of one picture; then the runs
        do not tell which picture they are of.
        """
        labels, runs = [f"[{picture_text(name, self._sizes)}]" for name in pictures], ids.count(self._image_token)
        if runs == 1:
            return iter(["".join(labels)])
        if runs != len(labels):
            return repeat(str(self._tokenizer.convert_ids_to_tokens(self._image_token)))
        return iter(labels)

    def _decoded(self, ids: Sequence[int], labels: Iterator[str]) -> str:
        texts: list[str] = []
        start = 0
        for end in [i for i, token in enumerate(ids) if token == self._image_token]:
            texts += [str(self._tokenizer.decode(ids[start:end])) if end > start else "", next(labels)]
            start = end + 1
        return "".join([*texts, str(self._tokenizer.decode(ids[start:])) if start < len(ids) else ""])


def across(samples: Mapping[int, list[Example]]) -> Iterator[Example]:
    """Yield a few examples, one from each file before a second one from any."""
    rounds = [examples[i] for i in range(MASK_SAMPLES) for examples in samples.values() if i < len(examples)]
    yield from rounds[:MASK_SAMPLES]
