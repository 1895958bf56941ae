"""Macro F1 over labels: the F1 of each label, averaged with equal weight, as scikit-learn's
``f1_score(average="macro")`` defines it (https://scikit-learn.org/stable/modules/generated/sklearn.metrics.f1_score.html).

The labels are those that occur in the references, outer whitespace stripped. An answer outside them counts as a miss
for the reference's label and as a false alarm for none. On a bootstrap resample the average covers the labels that
occur in its references.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = "F1 per label that occurs in the references, averaged with equal weight (macro), from 0 to 1."
_CITATION = "Pedregosa et al. 2011, Scikit-learn: Machine Learning in Python, JMLR 12, 2825-2830"


class F1(evaluate.Metric):
    higher_is_better = True
    is_binary = False
    scores_single_rows = False

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return per row the predicted, actual and correct counts, each block with a column per label."""
        labels = {label: i for i, label in enumerate(sorted({r.strip() for r in references}))}
        predicted, actual = np.zeros((2, len(references), len(labels)))  # each (n, labels)
        for row, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
            actual[row, labels[reference.strip()]] = 1
            if prediction.strip() in labels:
                predicted[row, labels[prediction.strip()]] = 1
        return np.concatenate([predicted, actual, predicted * actual], axis=1)  # (n, 3 * labels)

    def score(self, sums):
        predicted, actual, correct = np.split(np.asarray(sums, dtype=float), 3, axis=-1)  # each (..., labels)
        f1 = 2 * correct / np.maximum(predicted + actual, 1)
        is_present = actual > 0
        return (f1 * is_present).sum(axis=-1) / is_present.sum(axis=-1)

    def _compute(self, predictions, references):
        return {"f1": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
