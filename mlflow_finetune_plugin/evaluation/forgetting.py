"""Measure forgetting: how well a model predicts general text that it was not trained on, in nats."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.generation import DEFAULT_BATCH_TOKENS, completion_log_probs

DEFAULT_TEXT = Path(__file__).parent / "forgetting.txt"
"""Plain general English on varied topics, written for this package."""


def read_texts(path: str | Path) -> list[str]:
    """Return the paragraphs of a UTF-8 text file (or ``.gz``), or its lines if it has no blank line."""
    path = Path(path)
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = data.decode("utf-8-sig").strip()
    except OSError as error:  # gzip.BadGzipFile is one
        raise DataError(
            f"cannot read the forgetting text {path}: {error}; fix: set eval.forgetting to a readable text file"
        ) from error
    except EOFError as error:
        raise DataError(f"the forgetting text {path} is cut off: {error}; fix: compress it again") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the forgetting text {path} is not UTF-8 text: {error}; fix: save it as UTF-8") from error
    paragraphs = [text.strip() for text in re.split(r"\n\s*\n", content.replace("\r\n", "\n"))]
    texts = paragraphs if len(paragraphs) > 1 else [line.strip() for line in content.splitlines() if line.strip()]
    if not texts:
        raise DataError(f"the forgetting text {path} is empty; fix: use a file with some paragraphs of general text")
    return texts


def text_nats(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_tokens: int = DEFAULT_BATCH_TOKENS,
) -> np.ndarray:
    """Return [summed nats, tokens] of each text, (texts, 2).

    A text longer than ``max_length`` tokens is scored in windows that overlap by half, each token once and with at
    least half a window before it (after the first window). A text starts after BOS (EOS where the tokenizer has no
    BOS); with neither, its first token is only context and is not counted.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    windows = [
        (text, prompt, completion)
        for text, content in enumerate(texts)
        for prompt, completion in _windows(
            tokenizer(content, add_special_tokens=False, verbose=False).input_ids, start, max_length
        )
    ]
    log_probs = completion_log_probs(
        model,
        [prompt for _, prompt, _ in windows],
        [completion for _, _, completion in windows],
        pad_token_id=tokenizer.pad_token_id or 0,  # padding is masked, so any id works
        batch_tokens=batch_tokens,
    )
    sums = np.zeros((len(texts), 2))
    for (text, _, completion), values in zip(windows, log_probs, strict=True):
        sums[text] += [-values.sum(dtype=np.float64), len(completion)]
    return sums


def _windows(ids: list[int], start: int | None, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (context, tokens to score) so that every token after the first is scored once."""
    ids = ids if start is None else [start, *ids]
    if len(ids) < 2:
        return
    yield ids[:1], ids[1:max_length]
    stride = max_length // 2
    for first in range(max_length, len(ids), stride):
        yield ids[first + stride - max_length : first], ids[first : first + stride]
