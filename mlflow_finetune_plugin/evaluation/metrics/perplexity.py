"""Perplexity of the reference answers: exp(nats / tokens), nats being the summed negative log-probabilities that the
model gives the reference's tokens (Jelinek et al. 1977, https://doi.org/10.1121/1.2016299). Less is better; every
token weighs the same, so long answers weigh more.

``predictions`` are each row's summed nats, ``references`` its number of tokens.
"""

import datasets
import evaluate
import numpy as np

_DESCRIPTION = (
    "exp(summed nats / tokens) of the reference answers; predictions are nats per row, references token counts."
)
_CITATION = "Jelinek et al. 1977, Perplexity: a measure of the difficulty of speech recognition tasks, JASA 62(S1)"


class Perplexity(evaluate.Metric):
    higher_is_better = False
    is_binary = False
    scores_single_rows = False
    reads_likelihoods = True

    def _info(self):
        features = datasets.Features(
            {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        )
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (nats, tokens) per row."""
        return np.stack([np.asarray(predictions, dtype=float), np.asarray(references, dtype=float)], axis=1)  # (n, 2)

    def score(self, sums):
        return np.exp(sums[..., 0] / sums[..., 1])

    def _compute(self, predictions, references):
        return {"perplexity": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
