"""ROUGE-L: F-measure of the longest common subsequence of words (Lin 2004, https://aclanthology.org/W04-1013/), through
the rouge-score package without stemming. Its tokenizer keeps the letters a-z and digits only: text in other scripts
scores 0, use chrf there.
"""

import datasets
import evaluate
import numpy as np
from rouge_score import rouge_scorer

_DESCRIPTION = "Mean over rows of ROUGE-L's F-measure, from 0 to 1."
_CITATION = "Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, ACL W04-1013"


class RougeL(evaluate.Metric):
    higher_is_better = True
    is_binary = False
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=_DESCRIPTION, citation=_CITATION, features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (F-measure of the row, 1) per row."""
        scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
        values = [
            scorer.score(target=r, prediction=p)["rougeL"].fmeasure
            for p, r in zip(predictions, references, strict=True)
        ]
        return np.stack([np.array(values, dtype=float), np.ones(len(values))], axis=1)  # (n, 2)

    def score(self, sums):
        return sums[..., 0] / sums[..., 1]

    def _compute(self, predictions, references):
        return {"rougeL": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}
