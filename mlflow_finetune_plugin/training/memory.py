"""Telling a refused allocation from other failures."""

from __future__ import annotations

import torch

_CPU_REFUSALS = ("can't allocate memory", "Cannot allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """True for the refusals of a GPU's allocator, of torch's CPU allocator and of Python's own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(refusal in str(error) for refusal in _CPU_REFUSALS)
