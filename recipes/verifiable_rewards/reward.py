"""Rewards that can be verified: an answer is right if it is the reference, and nothing else."""


def exact(completion: str, reference: str) -> float:
    """Return 1 for the right value, with or without a full stop, and 0 for everything else."""
    return float(completion.strip().rstrip(".") == reference)
