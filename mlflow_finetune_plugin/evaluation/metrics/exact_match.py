"""Exact match: the answer equals the reference, ignoring outer whitespace. Source: SQuAD's exact match without its
normalisation (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250).
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "Share of answers that equal their reference character for character, ignoring outer whitespace, from 0 to 1."
)
_CITATION = "Rajpurkar et al. 2016, SQuAD: 100,000+ Questions for Machine Comprehension of Text, arXiv:1606.05250"


class ExactMatch(evaluate.Metric):
    higher_is_better = True
    is_binary = True
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (hit, 1) per row."""
        hits = [p.strip() == r.strip() for p, r in zip(predictions, references, strict=True)]
        return np.stack([np.array(hits, dtype=float), np.ones(len(hits))], axis=1)  # (n, 2)

    def score(self, sums):
        return sums[..., 0] / sums[..., 1]

    def _compute(self, predictions, references):
        return {"exact_match": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
