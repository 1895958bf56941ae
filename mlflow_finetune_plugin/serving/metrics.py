"""Prometheus metrics of a router, per version, in a registry of its own."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_VERSION = ("model", "version")
_FIRST_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
_NEXT_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)


class Metrics:
    """``version`` is a version's number, or ``base``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "finetune"}
        self.requests = Counter("requests", "Answers begun", (*_VERSION, "route", "shadow"), **made)
        self.errors = Counter("errors", "Answers that failed", (*_VERSION, "reason"), **made)
        self.refused = Counter("refused", "Requests that no version saw", ("reason",), **made)
        self.first = Histogram(
            "time_to_first_token_seconds", "Request to first bytes of the answer", _VERSION, buckets=_FIRST_S, **made
        )
        self.between = Histogram(
            "inter_token_seconds", "Between two events of a stream", _VERSION, buckets=_NEXT_S, **made
        )
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts", _VERSION, **made)
        self.completion_tokens = Counter("completion_tokens", "Tokens of answers", _VERSION, **made)
        self.in_flight = Gauge("in_flight", "Answers being given", _VERSION, **made)
        self.resident = Gauge("resident", "1 while a version is loaded and certified", (*_VERSION, "engine"), **made)
        self.serving = Gauge("alias_version", "The version that answers under an alias", ("model", "alias"), **made)
        self.behind = Gauge(
            "alias_behind", "1 while an alias still answers with an earlier version", ("model", "alias"), **made
        )
        self.swaps = Gauge("swaps", "Aliases that moved since the start", **made)
        self.failed_swaps = Gauge("failed_swaps", "Moves that failed since the start", **made)
        self.registry_up = Gauge("registry_up", "1 while the registry answers", **made)
        self.engine_up = Gauge("engine_up", "1 while an engine is ready", ("engine", "base"), **made)
        self.restarts = Gauge("engine_restarts", "Starts of an engine after its first", ("engine", "base"), **made)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Watch:
    """One answer's times and counts. ``finish`` is called once, whatever happened."""

    def __init__(self, metrics: Metrics, model: str, version: str, route: str, *, shadow: bool = False) -> None:
        self._metrics, self._labels = metrics, (model, version)
        self._started = self._last = time.perf_counter()
        self.first_ms: float | None = None
        self.prompt_tokens = self.completion_tokens = 0
        metrics.requests.labels(*self._labels, route, str(shadow).lower()).inc()
        metrics.in_flight.labels(*self._labels).inc()

    def event(self) -> None:
        """Bytes of the answer have come."""
        now = time.perf_counter()
        if self.first_ms is None:
            self.first_ms = 1000 * (now - self._started)
            self._metrics.first.labels(*self._labels).observe(now - self._started)
        else:
            self._metrics.between.labels(*self._labels).observe(now - self._last)
        self._last = now

    def usage(self, usage: object) -> None:
        """What the engine says it used."""
        if isinstance(usage, dict):
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self.completion_tokens = int(usage.get("completion_tokens") or 0)

    def finish(self, failed: str | None = None) -> float:
        """Returns milliseconds since the start."""
        self._metrics.in_flight.labels(*self._labels).dec()
        self._metrics.prompt_tokens.labels(*self._labels).inc(self.prompt_tokens)
        self._metrics.completion_tokens.labels(*self._labels).inc(self.completion_tokens)
        if failed is not None:
            self._metrics.errors.labels(*self._labels, failed).inc()
        return 1000 * (time.perf_counter() - self._started)
