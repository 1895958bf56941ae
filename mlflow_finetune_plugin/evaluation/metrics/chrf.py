"""chrF: F-score (recall weighs twice) of character n-grams up to six, as sacrebleu computes it by default (Popović
2015, https://aclanthology.org/W15-3049/). Works for every script and for short answers.
"""

import datasets
import evaluate
import numpy as np
import sacrebleu

_DESCRIPTION = "Corpus chrF2, sacrebleu's defaults, from 0 to 100."
_CITATION = "Popović 2015, chrF: character n-gram F-score for automatic MT evaluation, ACL W15-3049"


class Chrf(evaluate.Metric):
    higher_is_better = True
    is_binary = False
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return per row, for 1 to 6 characters, the n-grams of the answer, of the reference, and the shared ones."""
        # the method that sacrebleu's own significance tests resample from
        rows = sacrebleu.CHRF()._extract_corpus_statistics(list(predictions), [list(references)])
        return np.array(rows, dtype=float)  # (n, 18)

    def score(self, sums):
        sums = np.asarray(sums, dtype=float)
        answer, reference, shared = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]  # each (..., 6)
        is_counted = (answer > 0) & (reference > 0)
        orders = np.maximum(is_counted.sum(axis=-1), 1)
        precision = (is_counted * shared / np.maximum(answer, 1)).sum(axis=-1) / orders
        recall = (is_counted * shared / np.maximum(reference, 1)).sum(axis=-1) / orders
        weighted = 4 * precision + recall  # beta = 2
        return 100 * 5 * precision * recall / np.where(weighted > 0, weighted, 1.0)

    def _compute(self, predictions, references):
        return {"chrf": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
