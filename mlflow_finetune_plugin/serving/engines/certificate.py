"""Certify a version before it takes traffic: compare the engine's log-probabilities with those of the trained model.

The worker stored prompts, token ids and the log-probabilities of base and adapter, in the precision of training and in each
precision of serving. The engine computes its own for both. They may differ by what a repeated request already changes: the
noise of the worker and of this engine (other rows in the batch), three times the difference of its base, and the rounding of
another kernel of the same precision. They must also be nearer to the adapter's than to the base's. The worker measured how far
the serving precision is from the training precision, which has a separate limit. The engine renders the prompts too, because
another chat template gives other token ids. It also answers a few of them, and the texts must be those of the trained model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
from mlflow_finetune_plugin.serving.engines.greedy_answers import compare_answers
from mlflow_finetune_plugin.serving.engines.probe_chats import ProbeChats

# nats on a token: the largest difference of the right base, and of the same weights in another kernel
_BASE_TOLERANCE = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.1}
_FLOOR = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}
_TIMES_THE_BASE = 3.0
_TIMES_THE_NOISE = 10.0
SIDES = ("base", "adapter")


@dataclass(frozen=True)
class Certificate:
    """The result of a comparison. Errors are the largest differences in nats on one of ``tokens`` answer tokens.

    Attributes:
        precision: The precision of serving.
        adapter_error: The adapter's difference from its reference; ``tolerance`` is the limit.
        base_error: The base's difference from its reference.
        noise: The difference between repeated requests, the worker's or the engine's, whichever is larger.
        gap: The adapter's difference between the precisions of training and serving; ``max_gap`` is the limit.
        effect: The mean difference between the references of adapter and base.
        rendered: How many prompts the engine rendered.
        answers: How many whole answers were compared; 0 for versions that were registered before references had answers.
        template: How the chat template differs from that of the base.
        content_digest: The digest of all that shapes the version's answers; None if it was registered before there was one.
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
    noise: float
    tolerance: float
    gap: float
    max_gap: float
    effect: float
    rendered: int
    answers: int
    template: str
    content_digest: str | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @property
    def summary(self) -> str:
        verdict = "passed" if self.passed else f"failed: {self.reason}"
        return f"{verdict} ({self.engine}, {self.adapter_error:.2g} nats of {self.tolerance:.2g} allowed, base {self.base_error:.2g}, gap {self.gap:.2g})"


@dataclass(frozen=True)
class _Expected:
    """The worker's log-probabilities for one precision, in nats: one array of all probes' tokens per side."""

    base: np.ndarray
    adapter: np.ndarray
    noise: float
    gap: float
    max_gap: float


async def certify(
    engine: EngineProcess,
    served_name: str,
    reference: dict[str, Any],
    *,
    version: str,
    content_digest: str | None = None,
    stop_token_ids: Sequence[int] = (),
    answer_prefix: str = "",
) -> Certificate:
    """Compare an engine with a version's reference.

    Args:
        engine: A ready engine.
        served_name: The engine's name for the adapter, which must be loaded.
        reference: The version's reference.json.
        version: The version's name, for messages.
        content_digest: The version's content digest, for the certificate.
        stop_token_ids: The tokens that end the version's answers.
        answer_prefix: What its chat template writes before each answer.

    Raises:
        ServingError: The engine does not answer, or the reference has no values for this precision.
    """
    probes, chats = _probes(reference, version), ProbeChats(reference)
    precision = engine.spec.key.precision
    expected = _expected(reference, precision, version)
    adapter = _flat(await _log_probs(engine, served_name, probes, chats))
    base = _flat(await _log_probs(engine, engine.spec.base_name, probes, chats))
    noise = max(expected.noise, await _noise(engine, probes, base, chats))
    rendered, wrong_prompt = await _rendered(engine, served_name, probes, reference.get("renderings", []), chats)
    dtype = engine.spec.key.dtype
    base_error, adapter_error = _largest(base - expected.base), _largest(adapter - expected.adapter)
    tolerance = max(_FLOOR[dtype], _TIMES_THE_BASE * base_error, _TIMES_THE_NOISE * noise)
    # the noise comes from the registry, too, and excuses no more than the largest difference of a base does
    tolerance = min(tolerance, _TIMES_THE_BASE * _BASE_TOLERANCE[dtype])
    compared = compare_answers(
        engine,
        served_name,
        reference,
        precision=precision,
        # one token at a time goes through other kernels than the probes, which were measured as a whole
        tolerance=max(tolerance, _BASE_TOLERANCE[dtype]),
        stop_token_ids=stop_token_ids,
        answer_prefix=answer_prefix,
    )
    answers, wrong_answer = await compared
    reason = ""
    if not expected.noise <= _BASE_TOLERANCE[dtype]:  # it comes from the registry, and would excuse any difference
        reason = f"its reference allows too much noise: {expected.noise:.2g} nats, {_BASE_TOLERANCE[dtype]:g} allowed"
    elif not expected.gap <= expected.max_gap:
        reason = f"in {precision} the adapter differs too much from its training: {expected.gap:.2g} nats, {expected.max_gap:g} allowed"
    elif not base_error <= _BASE_TOLERANCE[dtype]:
        reason = f"the base is another one, or is served in another precision: {base_error:.2g} nats off, {_BASE_TOLERANCE[dtype]:g} allowed"
    elif not adapter_error <= tolerance:
        reason = f"it is not the adapter that was trained, or is incomplete: {adapter_error:.2g} nats off, {tolerance:.2g} allowed"
    elif not _mean(adapter - expected.adapter) < _mean(adapter - expected.base):
        reason = "it answers as the base does"
    elif wrong_prompt is not None:
        reason = f"the engine renders conversations differently: {wrong_prompt}"
    elif wrong_answer is not None:
        reason = f"the engine answers differently: {wrong_answer}"
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
        noise=noise,
        tolerance=tolerance,
        gap=expected.gap,
        max_gap=expected.max_gap,
        effect=_mean(expected.adapter - expected.base),
        rendered=rendered,
        answers=answers,
        template=engine.spec.template.summary,
        content_digest=content_digest,
    )


async def still_holds(
    certificate: Certificate, engine: EngineProcess, served_name: str, reference: dict[str, Any]
) -> bool:
    """Return whether the adapter, loaded again into this engine, still gives the certified log-probabilities on its first probe."""
    probes = _probes(reference, certificate.version)[:1]
    expected = _expected(reference, engine.spec.key.precision, certificate.version).adapter
    measured = _flat(await _log_probs(engine, served_name, probes, ProbeChats(reference)))
    return _largest(measured - expected[: len(measured)]) <= certificate.tolerance


def _probes(reference: dict[str, Any], version: str) -> list[dict[str, Any]]:
    probes = reference.get("probes")
    if not isinstance(probes, list) or not probes:
        raise ServingError(f"{version}: its reference.json has no probes; fix: register it again")
    return probes


def _expected(reference: dict[str, Any], precision: str, version: str) -> _Expected:
    precisions = reference.get("served_as")
    if precisions is None and reference.get("precision") == precision:
        # The first version of this package stored the training precision alone.
        base, adapter = (_flat([probe[f"{side}_log_probs"] for probe in reference["probes"]]) for side in SIDES)
        return _Expected(base, adapter, noise=0.0, gap=0.0, max_gap=0.0)
    stored = (precisions or {}).get(precision)
    if stored is None:
        raise ServingError(
            f"{version}: its reference does not cover serving in {precision}, but in {', '.join(precisions or ()) or 'no other precision'}; "
            "fix: --dtype auto, or train it with register.precisions"
        )
    base, adapter = (_flat(stored[f"{side}_log_probs"]) for side in SIDES)
    return _Expected(base, adapter, float(stored["noise"]), float(stored["gap"]), float(stored["max_gap"]))


async def _noise(
    engine: EngineProcess, probes: Sequence[dict[str, Any]], together: np.ndarray, chats: ProbeChats
) -> float:
    """Return the largest difference on a token of this engine's base between probes sent together and one at a time.

    It is measured once for each start of an engine, because it depends on the precision and the kernels, not on the version.
    """
    if engine.noise is None or engine.noise[0] != engine.generation:
        alone = [await _log_probs(engine, engine.spec.base_name, [probe], chats) for probe in probes]
        difference = _largest(_flat([row for rows in alone for row in rows]) - together)
        engine.noise = (engine.generation, difference)
    return engine.noise[1]


async def _log_probs(
    engine: EngineProcess, name: str, probes: Sequence[dict[str, Any]], chats: ProbeChats
) -> list[list[float]]:
    """Return the log-probabilities of each probe's answer tokens, from one request."""
    prompts = [[*probe["prompt_ids"], *probe["completion_ids"]] for probe in probes]
    body: dict[str, Any] = {"model": name, "prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
    body |= chats.pictures(probes)
    choices = sorted((await engine.complete(body))["choices"], key=lambda choice: int(choice["index"]))
    rows = []
    for probe, ids, choice in zip(probes, prompts, choices, strict=True):
        entries = choice["prompt_logprobs"]
        start = len(probe["prompt_ids"])
        rows.append([float(entries[i][str(ids[i])]["logprob"]) for i in range(start, len(ids))])
    return rows


async def _rendered(
    engine: EngineProcess,
    name: str,
    probes: Sequence[dict[str, Any]],
    renderings: Sequence[dict[str, Any]],
    chats: ProbeChats,
) -> tuple[int, str | None]:
    """Let the engine render up to two probes, and conversations of other shapes that were rendered in training.

    Returns:
        How many it rendered, and a description of the first that differs.
    """
    described = {f"probe {number}": probe for number, probe in enumerate(probes) if probe.get("messages")}
    described = dict(list(described.items())[:2]) | {str(rendering["shape"]): rendering for rendering in renderings}
    for description, chat in described.items():
        body = {
            "model": name,
            "messages": chats.messages(chat),
            **({"tools": chat["tools"], "tool_choice": "none"} if chat.get("tools") else {}),
            "max_tokens": 1,
            "temperature": 0,
            "return_token_ids": True,
        }
        ids = (await engine.complete(body, "/v1/chat/completions")).get("prompt_token_ids")
        if ids != chat["prompt_ids"]:
            return len(described), f"{description} has other token ids"
    return len(described), None


def _flat(rows: Sequence[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(row, dtype=np.float64) for row in rows])


def _largest(differences: np.ndarray) -> float:
    return float(np.max(np.abs(differences)))


def _mean(differences: np.ndarray) -> float:
    return float(np.mean(np.abs(differences)))
