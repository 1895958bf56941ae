"""Check pairs of answers as a set: contradictions, few prompts, and better answers that are mostly the longer ones."""

from __future__ import annotations

from array import array

import numpy as np

from mlflow_finetune_plugin.data.report.contents import DataFinding

CONTRADICTING_PAIRS = "contradicting pairs"
LENGTH_BIAS = "length bias"
FEW_PROMPTS = "few prompts"

_FEWEST_PAIRS = 50
"""With fewer pairs, a share of three quarters is often chance: of 50 fair coins, 38 or more show heads in 1 of 6,500 draws."""
_LARGEST_SHARE, _SMALLEST_SHARE = 0.75, 0.25
_PAIRS_PER_PROMPT = 4
_KEY_MASK = 2**64 - 1
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
"""Odd factors that spread over all bits, those of the generator splitmix64."""


class PreferenceTally:
    """The pairs of a training set, as keys. Equal texts have equal keys; a pair takes 24 bytes."""

    def __init__(self) -> None:
        self._prompts, self._chosen, self._rejected = array("Q"), array("Q"), array("Q")
        self._longer, self._shorter = 0, 0

    def add(
        self, prompt_key: int, chosen_key: int, rejected_key: int, chosen_tokens: int, rejected_tokens: int
    ) -> None:
        """Count a pair.

        Args:
            prompt_key: A hash of the turns before the answers; only its lowest 64 bits count.
            chosen_key: A hash of the better answer.
            rejected_key: A hash of the worse answer.
            chosen_tokens: The length of the better answer in tokens.
            rejected_tokens: The length of the worse answer in tokens.
        """
        self._prompts.append(prompt_key & _KEY_MASK)
        self._chosen.append(chosen_key & _KEY_MASK)
        self._rejected.append(rejected_key & _KEY_MASK)
        self._longer += chosen_tokens > rejected_tokens
        self._shorter += chosen_tokens < rejected_tokens

    def findings(self) -> list[DataFinding]:
        """Return what is unusual about the pairs; empty where nothing is."""
        if not self._prompts:
            return []
        prompts, better, worse = (
            np.frombuffer(column, dtype=np.uint64) for column in (self._prompts, self._chosen, self._rejected)
        )
        pairs, first = np.unique(_pair_keys(prompts, better, worse), return_index=True)
        first = first[better[first] != worse[first]]
        findings = [
            _contradictions(pairs, _pair_keys(prompts[first], worse[first], better[first])),
            _length_bias(self._longer, self._shorter),
            _few_prompts(len(np.unique(prompts)), len(prompts)),
        ]
        return [finding for finding in findings if finding is not None]


def _pair_keys(prompts: np.ndarray, better: np.ndarray, worse: np.ndarray) -> np.ndarray:
    """Return one 64-bit key per pair. Numpy sorts and compares numbers faster than records of three."""
    keys = np.zeros(len(prompts), dtype=np.uint64)
    for column, factor in zip((prompts, better, worse), _FACTORS, strict=True):
        keys = (keys + column) * factor
        keys ^= keys >> np.uint64(31)
    return keys


def _contradictions(pairs: np.ndarray, reversed_pairs: np.ndarray) -> DataFinding | None:
    count = int(np.isin(reversed_pairs, pairs).sum()) // 2  # the reverse of each of the two rows is in the data
    if not count:
        return None
    text = (
        "pair of answers to one prompt occurs in both orders, so the two rows"
        if count == 1
        else "pairs of answers to one prompt occur in both orders, so their rows"
    )
    fix = "keep the right order of each"
    return DataFinding(CONTRADICTING_PAIRS, count, f"{text} teach the opposite of each other", (), "", fix)


def _length_bias(longer: int, shorter: int) -> DataFinding | None:
    """Return a finding on the lengths of the answers. Pairs of equal lengths say nothing about them."""
    pairs = longer + shorter
    if pairs < _FEWEST_PAIRS or _SMALLEST_SHARE <= longer / pairs <= _LARGEST_SHARE:
        return None
    is_longer = longer > shorter
    count, word, other = (longer, "longer", "shorter") if is_longer else (shorter, "shorter", "longer")
    text = (
        f"of {pairs:,} pairs whose answers differ in length have a {word} better answer ({count / pairs:.0%}), so a model may "
        "learn length instead of quality"
    )
    fix = f"add pairs whose better answer is {other}, and compare the lengths of answers before and after training"
    return DataFinding(LENGTH_BIAS, count, text, (), "", fix)


def _few_prompts(prompts: int, pairs: int) -> DataFinding | None:
    if pairs < _FEWEST_PAIRS or pairs < _PAIRS_PER_PROMPT * prompts:
        return None
    text = f"different prompt{'' if prompts == 1 else 's'} for {pairs:,} pairs, {pairs / prompts:.1f} pairs a prompt"
    fix = "add prompts, because what is learned on few prompts may not hold for others"
    return DataFinding(FEW_PROMPTS, prompts, text, (), "", fix, is_warning=False)
