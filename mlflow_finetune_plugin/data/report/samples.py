"""Convert examples to readable text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import datasets

from mlflow_finetune_plugin.data.tokens.renderer import Example

MASK_SAMPLES = 5
_SHOWN_TOKENS = 80


class ExampleText:
    """Returns the first tokens of an example as text."""

    def __init__(self, examples: datasets.Dataset, tokenizer: Any) -> None:
        self._examples, self._tokenizer = examples, tokenizer

    def __call__(self, example: int) -> str:
        ids = self._examples[example]["input_ids"]
        text = str(self._tokenizer.decode(ids[:_SHOWN_TOKENS]))
        return text + ("..." if len(ids) > _SHOWN_TOKENS else "")


def across(samples: Mapping[int, list[Example]]) -> Iterator[Example]:
    """Yield a few examples, one from each file before a second one from any."""
    rounds = [examples[i] for i in range(MASK_SAMPLES) for examples in samples.values() if i < len(examples)]
    yield from rounds[:MASK_SAMPLES]


def segments(example: Example, tokenizer: Any) -> tuple[dict[str, object], ...]:
    """Return the example as decoded text, cut where loss starts and ends."""
    cuts = [0, *(i for i in range(1, len(example.input_ids)) if example.loss_mask[i] != example.loss_mask[i - 1])]
    ends = [*cuts[1:], len(example.input_ids)]
    return tuple(
        {"text": tokenizer.decode(example.input_ids[a:b]), "carries_loss": bool(example.loss_mask[a])}
        for a, b in zip(cuts, ends, strict=True)
    )
