"""Micro-averaged F1 over answers of the form `field: value, field: value`. A field counts if its value is not `none`, and is
right if its value equals the reference's.
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
        """Return three columns: right fields, answered fields, fields of the reference."""
        rows = []
        for prediction, reference in zip(predictions, references, strict=True):
            answered, expected = fields(prediction), fields(reference)
            right = sum(expected.get(name) == value for name, value in answered.items())
            rows.append([right, len(answered), len(expected)])
        return np.array(rows, dtype=float)  # (n, 3)

    def score(self, sums):
        right, answered, expected = sums[..., 0], sums[..., 1], sums[..., 2]
        return 2 * right / np.maximum(answered + expected, 1)

    def _compute(self, predictions, references):
        return {"field_f1": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}


def fields(text):
    """Return the value of each field, without fields that are `none`."""
    pairs = (part.split(":", 1) for part in text.split(",") if ":" in part)
    return {name.strip(): value.strip() for name, value in pairs if value.strip() != "none"}
