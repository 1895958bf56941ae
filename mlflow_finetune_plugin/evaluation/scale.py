"""Words for measured numbers, so that every page and log line describes the same number the same way. Standard library only."""

from __future__ import annotations

import math

from mlflow_finetune_plugin.evaluation.results import Interval

_FORGETTING_SCALE = ((0.01, "none"), (0.05, "small"), (0.2, "moderate"))
"""Upper bounds in nats per token; anything above is ``large``.

The bounds compare forgetting with the loss of a smaller model. By the scaling law of Hoffmann et al. 2022 (arXiv 2203.15556,
equation 10) the loss on general text rises by 0.05 nats per token when a model of 7B parameters shrinks to half its size, and
by 0.2 when it shrinks to 0.8B. 0.05 is also the default bound of the gate. Below 0.01 the perplexity changes by less than 1 %.
"""


def describe_forgetting(nats: float) -> str:
    """Return ``none``, ``small``, ``moderate`` or ``large``.

    Args:
        nats: Adapter minus base on general text, in nats per token. At or below 0 the adapter predicts it no worse.
    """
    return next((word for bound, word in _FORGETTING_SCALE if nats < bound), "large")


def forgetting_text(interval: Interval) -> str:
    """Return forgetting in words and numbers: ``small, +0.020 nats per token (95 % interval +0.010 to +0.031)``."""
    text = f"{describe_forgetting(interval.value)}, {interval.value:+.3f} nats per token"
    if math.isinf(interval.low) or math.isinf(interval.high):
        return f"{text} (no interval: only one text)"
    return f"{text} (95 % interval {interval.low:+.3f} to {interval.high:+.3f})"
