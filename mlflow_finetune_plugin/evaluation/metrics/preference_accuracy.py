"""Preference accuracy: the share of pairs whose better answer the model finds more likely than the worse one, as whole texts
(Rafailov et al. 2023, arXiv 2305.18290; the implicit reward without its reference). It says nothing about the answers that the
model generates: it can be 1 while they are wrong.

``predictions`` are by how many nats each better answer is more likely; ``references`` are not read.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "Share of pairs whose better answer is more likely; predictions are margins in nats, references are not read."
)
_CITATION = "Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290"


class PreferenceAccuracy(evaluate.Metric):
    higher_is_better = True
    is_binary = True
    scores_single_rows = True
    reads_pairs = True

    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (right, 1) per row; an equal likelihood is not right."""
        right = np.asarray(predictions, dtype=float) > 0
        return np.stack([right.astype(float), np.ones(len(right))], axis=1)  # (n, 2)

    def score(self, sums):
        return sums[..., 0] / sums[..., 1]

    def _compute(self, predictions, references):
        return {"preference_accuracy": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
