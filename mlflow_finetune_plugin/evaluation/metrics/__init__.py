"""The packaged metrics, one local ``evaluate`` module per file. Each file stands alone, so that ``evaluate.load`` works offline.

The room promises the numbers of the reference implementation that a file names.
"""

__all__ = ["accuracy", "bleu", "chrf", "exact_match", "f1", "perplexity", "rougeL", "token_f1"]
