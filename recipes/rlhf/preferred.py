"""Share of preferred replies: whole sentences with each value of the note. It is computed from the replies alone, so a policy that
fools the reward model gains nothing here.
"""

import re

import datasets
import evaluate
import numpy as np

SENTENCE = re.compile(r"[A-Z][a-z]+( [A-Za-z]+){4,}\.")


class Preferred(evaluate.Metric):
    higher_is_better = True
    is_binary = True
    scores_single_rows = True

    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})
        return evaluate.MetricInfo(description=__doc__, citation="", features=features)

    def row_statistics(self, predictions, references):
        """Return the columns (preferred, 1) per row."""
        preferred = [is_preferred(*pair) for pair in zip(predictions, references, strict=True)]
        return np.stack([np.array(preferred, dtype=float), np.ones(len(preferred))], axis=1)  # (n, 2)

    def score(self, sums):
        return sums[..., 0] / sums[..., 1]

    def _compute(self, predictions, references):
        return {"preferred": float(self.score(self.row_statistics(predictions, references).sum(axis=0)))}


def is_preferred(reply, note):
    """Return whether a reply is one whole sentence with each value of its note."""
    words = set(re.findall(r"\w+", reply))
    return SENTENCE.fullmatch(reply.strip()) is not None and words.issuperset(note.split(", "))
