"""Measure base and adapter in each precision that may serve them, and how much a repeated measurement differs.

Training holds the adapter in float32 on a base that may be bfloat16; engines hold both in one precision. So the reference for
an engine comes from the model cast as the engine casts it, not from the trained one. The difference between these two is
measured separately, as the gap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from mlflow_finetune_plugin.evaluation.generation import completion_log_probs
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.logged_models.reference_answers import Decoding, reference_answers


@dataclass(frozen=True)
class ServedAs:
    """Log-probabilities in nats, one array per probe, of both sides in one precision.

    ``noise``: the largest difference on a token between probes asked together and one at a time, of either side. ``gap``: the
    largest difference of the adapter from what it says in training's precision; ``max_gap``: what is allowed. ``answers``: those of
    ``reference_answers``.
    """

    base: list[np.ndarray]
    adapter: list[np.ndarray]
    noise: float
    gap: float
    max_gap: float
    answers: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As ``reference.json`` holds it."""
        return {
            "noise": self.noise,
            "gap": self.gap,
            "max_gap": self.max_gap,
            "base_log_probs": [[float(x) for x in side] for side in self.base],
            "adapter_log_probs": [[float(x) for x in side] for side in self.adapter],
            "answers": self.answers,
        }


def served_as(
    model: PeftModel,
    rows: Sequence[EvalRow],
    precision: str,
    *,
    trained: Sequence[np.ndarray],
    pad_token_id: int,
    max_gap: float,
    decoding: Decoding | None = None,
) -> ServedAs:
    """``precision``: ``float32``, ``bfloat16`` or ``float16``, and ``+nf4`` or the like for a base that stays quantised.

    ``trained``: what the adapter says as it was trained. ``decoding``: without it no answers are generated. A precision that is not
    the base's own takes the memory of a second base for a while.
    """
    dtype = getattr(torch, precision.split("+", maxsplit=1)[0])
    with _cast(model, dtype) as cast:
        cast.eval()
        adapter, adapter_noise = _probed_twice(cast, rows, pad_token_id)
        answers = [] if decoding is None else reference_answers(cast, rows, decoding)
        with cast.disable_adapter():
            base, base_noise = _probed_twice(cast, rows, pad_token_id)
    return ServedAs(base, adapter, max(adapter_noise, base_noise), _largest(adapter, trained), max_gap, answers)


def _probed_twice(model: torch.nn.Module, rows: Sequence[EvalRow], pad_token_id: int) -> tuple[list[np.ndarray], float]:
    """What it says, and the largest difference when the company in the batch is another."""
    prompts, completions = [row.prompt_ids for row in rows], [row.completion_ids for row in rows]
    together = completion_log_probs(model, prompts, completions, pad_token_id=pad_token_id)
    alone = [
        completion_log_probs(model, [prompt], [completion], pad_token_id=pad_token_id)[0]
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return together, _largest(together, alone)


def _largest(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    return float(np.max(np.abs(np.concatenate(first) - np.concatenate(second))))


@contextmanager
def _cast(model: PeftModel, dtype: torch.dtype) -> Iterator[PeftModel]:
    """Cast base and adapter to ``dtype``, without what training has put around their ``forward``, and restore them bit for bit.

    The cast is in place: a copy of a trained model would still run the original, which TRL's fused head and accelerate's autocast
    hold in closures. Buffers are not cast: engines also keep the angles of positions in float32.
    """
    originals = {
        name: parameter.data
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and parameter.dtype != dtype
    }
    wrapped = {module: module.__dict__.pop("forward", None) for module in (model, model.get_base_model())}
    try:
        for name, parameter in model.named_parameters():
            if name in originals:
                parameter.data = originals[name].to(dtype)
        yield model
    finally:
        for name, parameter in model.named_parameters():
            if name in originals:
                parameter.data = originals[name]
        for module, forward in wrapped.items():
            if forward is not None:
                module.__dict__["forward"] = forward
