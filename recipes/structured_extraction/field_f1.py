"""Micro-averaged F1 over answers of the form `field: value, field: value`: a field counts when its value is not `none`, and
is right when its value is the reference's.
"""

import datasets
import evaluate
import numpy as np


class FieldF1(evaluate.Metric):
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def row_statistics(self, predictions, references):
        """Columns: fields that are right, fields answered, fields of the reference."""
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            answered, wanted = fields(prediction), fields(reference)
            right = sum(wanted.get(name) == value for name, value in answered.items())
            rows.append([right, len(answered), len(wanted)])
        return np.array(rows, dtype=float)  # (n, 3)

    def score(self, sums):
        right, answered, wanted = sums[..., 0], sums[..., 1], sums[..., 2]
        return 2 * right / np.maximum(answered + wanted, 1)

    def _compute(self, predictions, references):
        return {"field_f1": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}


def fields(text):
    """Field -> value, `none` left out."""
    pairs = (part.split(":", 1) for part in text.split(",") if ":" in part)
    return {name.strip(): value.strip() for name, value in pairs if value.strip() != "none"}
