"""The similarities of ``text_similarity`` graders, each from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from mlflow_finetune_plugin.errors import MissingExtraError

Similarity = Callable[[str, str], float]
"""Return how similar an input and a reference are, from 0 to 1."""


def similarity(metric: str) -> Similarity:
    """Return the function of a metric.

    Raises:
        MissingExtraError: its package is not installed.
    """
    if metric == "fuzzy_match":
        return fuzzy_match
    try:
        return {"bleu": _bleu, "gleu": _gleu}[metric]() if metric in ("bleu", "gleu") else _rouge(metric)
    except ImportError as error:
        raise MissingExtraError(
            f"text_similarity with {metric} needs a package that is not installed: {error}; fix: pip install 'mlflow-finetune[train]'"
        ) from error


def fuzzy_match(text: str, reference: str) -> float:
    """Return rapidfuzz's ``ratio``: twice the longest common subsequence of characters, divided by both lengths."""
    total = len(text) + len(reference)
    return 2 * _common_subsequence(text, reference) / total if total else 1.0


def _common_subsequence(a: str, b: str) -> int:
    """Return its length, with one integer for a whole row of the table (Hyyro 2004, "Bit-parallel LCS-length computation")."""
    places: dict[str, int] = {}
    for index, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << index
    everything = (1 << len(a)) - 1
    row = everything
    for character in b:
        matches = row & places.get(character, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(a) - row.bit_count()


def _bleu() -> Similarity:
    import sacrebleu

    return lambda text, reference: float(sacrebleu.sentence_bleu(text, [reference]).score) / 100


def _gleu() -> Similarity:
    from nltk.translate.gleu_score import sentence_gleu

    def gleu(text: str, reference: str) -> float:
        return float(sentence_gleu([reference.split()], text.split())) if text.split() and reference.split() else 0.0

    return gleu


def _rouge(metric: str) -> Similarity:
    name = "rougeL" if metric == "rouge_l" else metric.replace("_", "")
    scorer = _rouge_scorer(name)
    return lambda text, reference: float(scorer.score(target=reference, prediction=text)[name].fmeasure)


@cache
def _rouge_scorer(name: str) -> Any:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([name], use_stemmer=False)
