"""Corpus BLEU as sacrebleu computes it by default: 13a tokens, up to four words, exponential smoothing (Papineni et al.
2002, https://aclanthology.org/P02-1040/; Post 2018, https://aclanthology.org/W18-6319/). It needs texts: a corpus
whose answers all have fewer than four words scores 0.
"""

import datasets
import evaluate
import numpy as np
import sacrebleu

_DESCRIPTION = "Corpus BLEU, sacrebleu's defaults, from 0 to 100."
_CITATION = "Post 2018, A Call for Clarity in Reporting BLEU Scores, ACL W18-6319"


class Bleu(evaluate.Metric):
    higher_is_better = True
    is_binary = False
    scores_single_rows = False

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return per row the lengths of answer and reference, then matches and candidates of 1 to 4 words."""
        # the method that sacrebleu's own significance tests resample from
        rows = sacrebleu.BLEU(force=True)._extract_corpus_statistics(list(predictions), [list(references)])
        return np.array(rows, dtype=float)  # (n, 10)

    def score(self, sums):
        sums = np.asarray(sums, dtype=float)
        length, reference_length, matches, candidates = np.split(sums, [1, 2, 6], axis=-1)
        # each order without a match gets half the count of the one before it: sacrebleu's smooth_method="exp"
        smoothed = np.where(matches > 0, matches, 0.5 ** np.cumsum(matches == 0, axis=-1))
        precisions = smoothed / np.maximum(candidates, 1)  # (..., 4)
        brevity = np.exp(np.minimum(0, 1 - reference_length / np.maximum(length, 1)))[..., 0]
        is_scored = (matches > 0).any(axis=-1) & (candidates > 0).all(axis=-1)
        return np.where(is_scored, 100 * brevity * np.exp(np.log(precisions).mean(axis=-1)), 0.0)

    def _compute(self, predictions, references):
        return {"bleu": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
