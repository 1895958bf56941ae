"""Accuracy of labels: the share of answers that name the reference's label, ignoring case, spacing and punctuation.

The match that lm-evaluation-harness calls ``ignore_case`` and ``ignore_punctuation``
(https://github.com/EleutherAI/lm-evaluation-harness), so that "Positive." answers "positive". What carries meaning
in labels stays: a sign before a number ("-1" is not "1"), a point inside one ("3.5" is not "35"), "#" and "%", and
symbols such as "+" and "<". A label of punctuation alone is compared unchanged.
"""

import unicodedata

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "Share of answers that name the reference's label, ignoring case, whitespace and punctuation, from 0 to 1."
)
_CITATION = "Gao et al. 2023, A framework for few-shot language model evaluation, doi:10.5281/zenodo.10256836"


class Accuracy(evaluate.Metric):
    higher_is_better = True
    is_binary = True
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (hit, 1) per row."""
        hits = [normalise_label(p) == normalise_label(r) for p, r in zip(predictions, references, strict=True)]
        return np.stack([np.array(hits, dtype=float), np.ones(len(hits))], axis=1)  # (n, 2)

    def score(self, sums):
        return sums[..., 0] / sums[..., 1]

    def _compute(self, predictions, references):
        return {"accuracy": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}


def normalise_label(text):
    text = unicodedata.normalize("NFKC", text).casefold().strip()
    characters = [char for i, char in enumerate(text) if not char.isspace() and not _is_decoration(text, i)]
    return "".join(characters) or text


def _is_decoration(text, i):
    if not unicodedata.category(text[i]).startswith("P") or text[i] in "#%":
        return False
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    if text[i] == "-" and after.isdigit() and not before.isalnum():
        return False
    return not (text[i] in ".," and before.isdigit() and after.isdigit())
