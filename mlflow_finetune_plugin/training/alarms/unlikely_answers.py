"""Better answers that the model before training finds far less likely than the worse ones.

A loss of pairs can then win by making the worse answers still less likely, while the better ones, which the model hardly ever
writes, fall with them (Pal et al. 2024, arXiv 2402.13228).
"""

from __future__ import annotations

import numpy as np

from mlflow_finetune_plugin.jobs.report import Report
from mlflow_finetune_plugin.store.names import TRAIN_REFERENCE_CHOSEN, TRAIN_REFERENCE_REJECTED

_GAP_NATS = 2.0
"""Per token: the better answer's tokens are on average more than seven times less likely."""
_LARGEST_SHARE = 0.5
_FEWEST_PAIRS = 10


def report_unlikely_answers(nats: np.ndarray, report: Report) -> None:
    """Record how unlikely the reference finds the answers of pairs, and note where most better ones are far less likely.

    Args:
        nats: Negative log-probabilities of the better and the worse answer of each pair, (pairs, 2), in nats per token.
        report: Receives metrics and note.
    """
    chosen, rejected = nats.mean(axis=0).tolist()
    report.metrics({TRAIN_REFERENCE_CHOSEN: chosen, TRAIN_REFERENCE_REJECTED: rejected})
    share = float((nats[:, 0] - nats[:, 1] > _GAP_NATS).mean())
    if len(nats) >= _FEWEST_PAIRS and share > _LARGEST_SHARE:
        report.note(
            f"the model hardly ever writes answers like the better ones: in {share:.0%} of the pairs it finds the better answer less "
            f"likely than the worse one by more than {_GAP_NATS:g} nats per token (means {chosen:.1f} and {rejected:.1f}); "
            "fix: train on the better answers first (-e lora), then continue that version (-P start_from=models:/NAME/VERSION)"
        )
