"""Token F1: overlap of the answer's and the reference's words after SQuAD's normalisation (lower case, no punctuation,
no English articles), as in SQuAD's evaluation script (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250; empty
answers as in SQuAD 2.0, https://rajpurkar.github.io/SQuAD-explorer/).
"""

import collections
import re
import string

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "Mean over rows of the F1 between the words of answer and reference, SQuAD's normalisation, from 0 to 1."
_CITATION = "Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250"


class TokenF1(evaluate.Metric):
    higher_is_better = True
    is_binary = False
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (F1 of the row, 1) per row."""
        values = [_token_f1(_tokens(p), _tokens(r)) for p, r in zip(predictions, references, strict=True)]
        return np.stack([np.array(values, dtype=float), np.ones(len(values))], axis=1)  # (n, 2)

    def score(self, sums):
        return sums[..., 0] / sums[..., 1]

    def _compute(self, predictions, references):
        return {"token_f1": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}


def _tokens(text):
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _token_f1(predicted, actual):
    if not predicted or not actual:
        return float(predicted == actual)
    common = (collections.Counter(predicted) & collections.Counter(actual)).total()
    return 2 * common / (len(predicted) + len(actual))
