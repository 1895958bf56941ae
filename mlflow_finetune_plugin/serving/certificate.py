"""Before a version takes traffic: does this engine say of known texts what the trained model said of them?

The worker stored rendered prompts, token ids and the log-probabilities of base and adapter. The engine is asked for its own,
of both. Its base tells how far this engine and precision are from training's when nothing is wrong; the adapter may be no
further from its reference than a few times that, and must be nearer to it than to the base's. The prompts are rendered by the
engine too: another chat template gives other token ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.engine import Engine

# nats per token, the largest over all; what a base may be off by when it is the right one, by training's precision
_BASE_TOLERANCE = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
_FLOOR = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}
_TIMES_THE_BASE = 3.0


@dataclass(frozen=True)
class Certificate:
    """Largest differences are nats per token over ``tokens`` answer tokens; ``precision`` is that of training.

    ``base_error`` is also the gap between training's precision and this engine's. ``effect``: mean difference of the adapter's
    reference from the base's.
    """

    version: str
    engine: str
    precision: str
    passed: bool
    reason: str
    probes: int
    tokens: int
    adapter_error: float
    base_error: float
    tolerance: float
    effect: float
    rendered: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @property
    def summary(self) -> str:
        verdict = "passed" if self.passed else f"failed: {self.reason}"
        return f"{verdict} ({self.engine}, {self.adapter_error:.2g} nats of {self.tolerance:.2g} allowed, base {self.base_error:.2g})"


async def certify(engine: Engine, served_name: str, reference: dict[str, Any], *, version: str) -> Certificate:
    """Asks the engine; ``served_name`` must be loaded. Raises ServingError when it cannot be asked or the reference is none."""
    probes = _probes(reference, version)
    told = {side: _flat([probe[f"{side}_log_probs"] for probe in probes]) for side in ("adapter", "base")}
    adapter = _flat(await _log_probs(engine, served_name, probes))
    base = _flat(await _log_probs(engine, engine.spec.base_name, probes))
    rendered, wrong_prompt = await _rendered(engine, served_name, probes)
    precision = str(reference["precision"])
    dtype = precision.split("+", maxsplit=1)[0]
    base_error = _largest(base - told["base"])
    adapter_error = _largest(adapter - told["adapter"])
    tolerance = max(_FLOOR[dtype], _TIMES_THE_BASE * base_error)
    reason = ""
    if not base_error <= _BASE_TOLERANCE[dtype]:
        reason = f"the base is another one, or served in another precision: {base_error:.2g} nats off, {_BASE_TOLERANCE[dtype]:g} allowed"
    elif not adapter_error <= tolerance:
        reason = f"it is not the adapter that was trained, or not whole: {adapter_error:.2g} nats off, {tolerance:.2g} allowed"
    elif not _mean(adapter - told["adapter"]) < _mean(adapter - told["base"]):
        reason = "it answers as the base does"
    elif wrong_prompt is not None:
        reason = f"the engine renders conversations in another way: {wrong_prompt}"
    return Certificate(
        version=version,
        engine=engine.spec.kind,
        precision=precision,
        passed=not reason,
        reason=reason,
        probes=len(probes),
        tokens=len(adapter),
        adapter_error=adapter_error,
        base_error=base_error,
        tolerance=tolerance,
        effect=_mean(told["adapter"] - told["base"]),
        rendered=rendered,
    )


def _probes(reference: dict[str, Any], version: str) -> list[dict[str, Any]]:
    probes = reference.get("probes")
    if not isinstance(probes, list) or not probes or str(reference.get("precision", "")).split("+")[0] not in _FLOOR:
        raise ServingError(f"{version}: its reference.json holds no probes; fix: register it again")
    return probes


async def _log_probs(engine: Engine, name: str, probes: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Of each probe the log-probabilities of its answer's tokens, in one request."""
    prompts = [[*probe["prompt_ids"], *probe["completion_ids"]] for probe in probes]
    body = {"model": name, "prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    choices = sorted((await engine.complete(body))["choices"], key=lambda choice: int(choice["index"]))
    found = []
    for probe, ids, choice in zip(probes, prompts, choices, strict=True):
        told = choice["prompt_logprobs"]
        start = len(probe["prompt_ids"])
        found.append([float(told[i][str(ids[i])]["logprob"]) for i in range(start, len(ids))])
    return found


async def _rendered(engine: Engine, name: str, probes: Sequence[dict[str, Any]]) -> tuple[int, str | None]:
    """How many prompts the engine was asked to render, and the first that came out differently."""
    asked = [probe for probe in probes if probe.get("messages")][:2]
    for probe in asked:
        body = {
            "model": name,
            "messages": probe["messages"],
            "max_tokens": 1,
            "temperature": 0,
            "return_token_ids": True,
        }
        ids = (await engine.complete(body, "/v1/chat/completions")).get("prompt_token_ids")
        if ids != probe["prompt_ids"]:
            return len(asked), f"{str(probe['prompt'])[:60]!r} has other token ids"
    return len(asked), None


def _flat(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def _largest(differences: np.ndarray) -> float:
    return float(np.max(np.abs(differences)))


def _mean(differences: np.ndarray) -> float:
    return float(np.mean(np.abs(differences)))
