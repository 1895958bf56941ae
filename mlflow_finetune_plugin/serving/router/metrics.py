"""Prometheus metrics of a router, per version."""

from __future__ import annotations

import time
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_VERSION = ("model", "version")
_FIRST_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_WHOLE_S = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2, 3, 5, 8, 12, 20, 30, 60, 120)
_NEXT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class Metrics:
    """The metrics of one router. The label ``version`` is a version's number, or ``base``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry, namespace="finetune")
        gauge = partial(Gauge, registry=self.registry, namespace="finetune")
        histogram = partial(Histogram, registry=self.registry, namespace="finetune")
        self.requests = counter("requests", "Answers that began", (*_VERSION, "route", "shadow"))
        self.errors = counter("errors", "Answers that failed", (*_VERSION, "reason"))
        self.refused = counter("refused", "Requests that were refused before any version", ("reason",))
        self.first = histogram(
            "time_to_first_token_seconds", "Request to first event of a stream", _VERSION, buckets=_FIRST_S
        )
        self.whole = histogram(
            "answer_seconds", "Request to the end of an answer that did not fail", _VERSION, buckets=_WHOLE_S
        )
        self.between = histogram("inter_token_seconds", "Between two events of a stream", _VERSION, buckets=_NEXT_S)
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts", _VERSION)
        self.completion_tokens = counter("completion_tokens", "Tokens of answers", _VERSION)
        self.in_flight = gauge("in_flight", "Running answers", _VERSION)
        self.resident = gauge("resident", "1 while a version is loaded and certified", (*_VERSION, "engine"))
        self.serving = gauge("alias_version", "The version that answers under an alias", ("model", "alias"))
        self.behind = gauge(
            "alias_behind", "1 while an alias still answers with an earlier version", ("model", "alias")
        )
        self.swaps = gauge("swaps", "Aliases that moved since the start")
        self.failed_swaps = gauge("failed_swaps", "Moves that failed since the start")
        self.registry_up = gauge("registry_up", "1 while the registry answers")
        self.engine_up = gauge("engine_up", "1 while an engine is ready", ("engine", "base"))
        self.restarts = gauge("engine_restarts", "Starts of an engine after its first", ("engine", "base"))

    def text(self) -> bytes:
        return generate_latest(self.registry)


class RequestTimer:
    """Measures one answer. Call ``finish`` once, whatever happens."""

    def __init__(self, metrics: Metrics, model: str, version: str, route: str, *, shadow: bool = False) -> None:
        self._metrics, self._labels = metrics, (model, version)
        self._started = self._last = time.perf_counter()
        self.first_ms: float | None = None
        self.prompt_tokens = self.completion_tokens = 0
        metrics.requests.labels(*self._labels, route, str(shadow).lower()).inc()
        metrics.in_flight.labels(*self._labels).inc()

    def event(self) -> None:
        """Count a chunk of a stream."""
        now = time.perf_counter()
        if self.first_ms is None:
            self.first_ms = 1000 * (now - self._started)
            self._metrics.first.labels(*self._labels).observe(now - self._started)
        else:
            self._metrics.between.labels(*self._labels).observe(now - self._last)
        self._last = now

    def usage(self, usage: object) -> None:
        """Count the tokens that the engine reports."""
        if isinstance(usage, dict):
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self.completion_tokens = int(usage.get("completion_tokens") or 0)

    def finish(self, failed: str | None = None) -> float:
        """Count the end of the answer. Returns the milliseconds since its start."""
        self._metrics.in_flight.labels(*self._labels).dec()
        self._metrics.prompt_tokens.labels(*self._labels).inc(self.prompt_tokens)
        self._metrics.completion_tokens.labels(*self._labels).inc(self.completion_tokens)
        took_s = time.perf_counter() - self._started
        if failed is not None:
            self._metrics.errors.labels(*self._labels, failed).inc()
        else:
            self._metrics.whole.labels(*self._labels).observe(took_s)
        return 1000 * took_s
