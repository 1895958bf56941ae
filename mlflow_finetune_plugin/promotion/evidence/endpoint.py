"""Ask and time a version through a router, and check by the receipts that this version answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx
import numpy as np

from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.errors import GateError, in_short
from mlflow_finetune_plugin.evaluation.comparison import AnswerSet
from mlflow_finetune_plugin.evaluation.results import EvalRow, chat_fields
from mlflow_finetune_plugin.gate.evidence import Latency
from mlflow_finetune_plugin.promotion.evidence.held_out import HeldOut
from mlflow_finetune_plugin.promotion.evidence.proven_version import ProvenVersion
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts

PROBE_ANSWERS = 400
"""The most answers of each version that a probe times."""
_WARM = 3
_LEAST_TIMED = 60
_BETWEEN_LOOKS = 20


@dataclass(frozen=True)
class RouterEndpoint:
    """A router of this package. ``url`` includes ``/v1``; ``key`` is an API key, None sends none."""

    url: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if "@" in self.url.partition("//")[2].partition("/")[0] or not self.url.startswith(("http://", "https://")):
            raise GateError(
                f"the endpoint is not an http(s) URL without a name and password; fix: put the key in {ROUTER_KEY}"
            )

    def client(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.Client(base_url=self.url.rstrip("/") + "/", headers=headers, timeout=120, trust_env=False)


class ServedVersion:
    """One version behind an endpoint. Raises GateError for an answer of another version."""

    def __init__(self, endpoint: RouterEndpoint, version: ProvenVersion) -> None:
        self._endpoint, self._version = endpoint, version

    def answer(self, rows: Sequence[EvalRow], max_new_tokens: int) -> AnswerSet:
        """Return the router's answers at temperature 0.

        Likelihoods are NaN, because the router does not report them.
        """
        with self._endpoint.client() as client:
            answers = [self.ask(client, row, max_new_tokens)[0] for row in rows]
        return AnswerSet(answers, np.full(len(answers), np.nan))

    def ask(self, client: httpx.Client, row: EvalRow, max_new_tokens: int) -> tuple[str, float]:
        """Return the answer and the milliseconds from the request to its end."""
        version = self._version
        if not row.messages:
            raise GateError(f"{version.uri}: rows of plain text cannot be sent as a chat; fix: gain.through: model")
        name = f"{version.name}/{version.number}"
        body = {
            "model": name,
            **chat_fields(row.messages),
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }
        started = time.perf_counter()
        try:
            response = client.post("chat/completions", json=body)
            took_ms = 1000 * (time.perf_counter() - started)
            content = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise GateError(
                f"{name} at {self._endpoint.url}: {type(error).__name__}: {error}; fix: check --endpoint"
            ) from error
        if response.status_code != 200:
            error_body = content.get("error", {}) if isinstance(content, dict) else {}
            message = error_body.get("message", response.text[:200])
            raise GateError(f"{name} at {self._endpoint.url}: {response.status_code}: {message}; fix: serve it there")
        digest = response.headers.get("x-finetune-adapter-digest")
        if digest != version.adapter_digest:
            raise GateError(
                f"{name} at {self._endpoint.url}: the answer's receipt names adapter {str(digest)[:12]}, "
                f"the registry has {version.adapter_digest[:12]}; fix: name a router that serves this registry"
            )
        try:
            text = content["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError) as error:
            raise GateError(
                f"{name} at {self._endpoint.url}: its answer is not a chat completion: {in_short(error)}"
            ) from error
        return str(text).strip(), took_ms


def probe_latency(
    candidate: ServedVersion,
    champion: ServedVersion | None,
    endpoint: RouterEndpoint,
    rows: HeldOut,
    say: Callable[[str], None],
    is_decided: Callable[[Latency], bool] = lambda latency: False,
) -> Latency:
    """Time both versions on the same rows in turns, one request at a time, so that other load affects both alike.

    Args:
        candidate: The version.
        champion: The version that it is compared with, or None.
        endpoint: The router.
        rows: The questions, repeated where there are too few.
        say: Receives a line before the probe.
        is_decided: Ends the probe before ``PROBE_ANSWERS``. The judgement is valid at all times, so looks are free.

    Raises:
        GateError: The endpoint refuses, or another version answers.
    """
    say(f"timing at most {PROBE_ANSWERS} answers of each version at {endpoint.url}")
    took: tuple[list[float], list[float]] = ([], [])
    with endpoint.client() as client:
        for number in range(PROBE_ANSWERS + _WARM):
            row = rows.rows[number % len(rows.rows)]
            turns = [(candidate, took[0]), *([(champion, took[1])] if champion is not None else [])]
            for version, times in turns if number % 2 else reversed(turns):
                _, took_ms = version.ask(client, row, rows.max_new_tokens)
                if number >= _WARM:
                    times.append(took_ms)
            timed = len(took[0])
            if timed >= _LEAST_TIMED and timed % _BETWEEN_LOOKS == 0 and is_decided(_latency(took)):
                break
    return _latency(took)


def _latency(took: tuple[list[float], list[float]]) -> Latency:
    candidate, champion = (LatencyCounts.of(times) if times else None for times in took)
    assert candidate is not None
    return Latency(candidate, champion)
