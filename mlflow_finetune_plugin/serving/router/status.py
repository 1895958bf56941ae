"""The router's model list, readiness and metrics."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mlflow_finetune_plugin.serving.engines.fleet import Fleet, Resident
from mlflow_finetune_plugin.serving.router.follower import Follower
from mlflow_finetune_plugin.serving.router.metrics import Metrics
from mlflow_finetune_plugin.store.names import BASE


def _root(resident: Resident) -> dict[str, Any]:
    version = resident.version
    root = {"root": f"{version.model}/{version.number}", "parent": resident.engine.spec.base_name}
    return {**root, "sees": True} if version.card.get("sees") is True else root


class Status:
    """The status of one router."""

    def __init__(self, follower: Follower, fleet: Fleet, metrics: Metrics) -> None:
        self._follower, self._fleet, self._metrics = follower, fleet, metrics
        self._created = int(time.time())

    @property
    def sees(self) -> bool:
        """Whether any base here reads pictures."""
        return any(engine.spec.sees for engine in self._fleet.engines.values())

    def models(self) -> dict[str, Any]:
        """Return OpenAI's model list. As in vLLM, ``root`` is the version that answers, and ``parent`` its base.

        Versions that read pictures, and their bases, have ``"sees": true``.
        """
        entries: dict[str, dict[str, Any]] = {engine.spec.base_name: {} for engine in self._fleet.engines.values()}
        if self._fleet.has_one_base:
            entries[BASE] = {"root": next(iter(self._fleet.engines.values())).spec.base_name}
        for name, model in self._follower.snapshot.items():
            if model.traffic.choose(name, model.aliases, None) is not None:
                entries.setdefault(name, {})
            for alias in model.aliases:
                target = self._follower.targets.get((name, alias))
                if target is not None and target.resident is not None:
                    entries[f"{name}@{alias}"] = _root(target.resident)
        entries |= {
            root["root"]: root
            for loaded in self._fleet.residents.values()
            if loaded.is_ready
            for root in [_root(loaded)]
        }
        for base in {entry["parent"] for entry in entries.values() if entry.get("sees")}:
            for name, entry in entries.items():  # a base is listed by its name, and by ``base`` if it is the only one
                if name == base or (name == BASE and entry["root"] == base):
                    entry["sees"] = True
        data = [
            {"id": name, "object": "model", "created": self._created, "owned_by": "mlflow-finetune", **more}
            for name, more in entries.items()
        ]
        return {"object": "list", "data": data}

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "alive"})

    def readyz(self, *, in_full: bool) -> Response:
        """Return 200 while any alias can answer; ``degraded`` means that not all is as in the registry.

        A model without an alias counts as ready, because its versions answer by their numbers.

        Args:
            in_full: Whether to list aliases, engines and faults.
        """
        targets = list(self._follower.targets.values())
        ready = [target for target in targets if target.resident is not None and target.resident.is_ready]
        behind = [target for target in targets if target.serves != target.registered]
        health = self._follower.health
        faults = [health.fault, *health.traffic_problems, *self._fleet.faults()]
        is_known = bool(targets) or (bool(self._follower.snapshot) and health.fault is None)
        is_whole = len(ready) == len(targets) and not behind and not any(faults) and is_known
        status = "ready" if is_whole else "degraded" if ready else "not ready"
        code = 200 if ready or is_whole else 503
        if not in_full:
            return JSONResponse({"status": status}, code)
        content = {
            "status": status,
            "registry": {
                "fault": health.fault,
                "asked_at": health.answered_at,
                "traffic": list(health.traffic_problems),
            },
            "aliases": [
                {"model": t.model, "alias": t.alias, "serves": t.serves, "wanted": t.registered, "fault": t.fault}
                for t in targets
            ],
            "engines": [
                {
                    "engine": e.spec.kind,
                    "base": e.spec.base_name,
                    "state": e.state,
                    "restarts": e.restarts,
                    "template": e.spec.template.summary,
                    "fault": e.fault,
                }
                for e in self._fleet.engines.values()
            ],
        }
        return JSONResponse(content, code)

    async def metrics(self, request: Request) -> Response:
        self._take_stock()
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    def _take_stock(self) -> None:
        metrics, health = self._metrics, self._follower.health
        metrics.registry_up.set(health.fault is None and health.answered_at is not None)
        metrics.swaps.set(health.swaps)
        metrics.failed_swaps.set(health.failed_swaps)
        for gauge in (metrics.resident, metrics.serving, metrics.behind):
            gauge.clear()
        for loaded in self._fleet.residents.values():
            metrics.resident.labels(loaded.version.model, loaded.version.number, loaded.engine.spec.kind).set(
                loaded.is_ready
            )
        for target in self._follower.targets.values():
            metrics.behind.labels(target.model, target.alias).set(target.serves != target.registered)
            if target.serves is not None:
                metrics.serving.labels(target.model, target.alias).set(int(target.serves))
        for engine in self._fleet.engines.values():
            metrics.engine_up.labels(engine.spec.kind, engine.spec.base_name).set(engine.state == "ready")
            metrics.restarts.labels(engine.spec.kind, engine.spec.base_name).set(engine.restarts)
