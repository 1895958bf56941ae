"""The page on the router's HTTP API: routes, fields, receipts, errors and metrics."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from typing import Any, cast

from starlette.routing import Route

from mlflow_finetune_plugin.serving.router import large_requests, own_hosts, requests, router
from mlflow_finetune_plugin.serving.router.answering import answering, responders
from mlflow_finetune_plugin.serving.router.metrics import Metrics
from mlflow_finetune_plugin.serving.router.requests import FIELDS
from mlflow_finetune_plugin.serving.router.router import Router, RouterSettings
from reference_pages.markdown import code, page, table

_INTRODUCTION = """
`mlflow-finetune serve NAME` answers OpenAI's API at `http://127.0.0.1:8000/v1`. Any OpenAI client works:

```python
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="not-needed")
answer = client.chat.completions.create(model="my-bot@champion", messages=[{"role": "user", "content": "Hello"}])
```

With `--api-key-file`, requests to `/v1` need `Authorization: Bearer KEY`.
"""
_ROUTES = {
    "/v1/models": "OpenAI's model list. `root` is the version that answers, and `parent` its base.",
    "/v1/models/{model}": "One entry of the model list.",
    "/v1/chat/completions": "An answer to messages; with `stream` as server-sent events.",
    "/v1/completions": "An answer to a prompt; with `stream` as server-sent events.",
    "/healthz": "200 while the process runs.",
    "/readyz": "200 while any alias can answer, else 503. `status` is `ready`, `degraded` or `not ready`; aliases, engines and "
    "faults are listed for clients with an API key, and for all where no keys are required.",
    "/metrics": "Prometheus metrics.",
    "/webhooks/mlflow": "A signed webhook of MLflow: the router polls the registry at once. 204, or 401 for a wrong signature.",
}
_MODELS = """
`model` in a request is one of:

| `model` | answers |
|---|---|
| `my-bot@champion` | The version that the alias refers to now. |
| `my-bot/7` | Version 7. |
| `my-bot` | The version chosen by the model's split (tag `finetune.split`), else the champion. `user` makes the choice stable. |
| `base`, or the base's own name | The base model, without an adapter. |
"""
HEADERS = {
    "x-finetune-model": "The registered model that answered.",
    "x-finetune-version": "The version that answered, or `base`.",
    "x-finetune-adapter-digest": "SHA-256 of the adapter's files; empty for the base.",
    "x-finetune-base-digest": "SHA-256 of the base's weights.",
    "x-finetune-request-id": "The request's id in the router's log. Errors and the model list have it too.",
}
"""Every header of a receipt; a test compares the names with the code."""
_RECEIPTS = """
Every answer has a receipt: headers that prove which version gave it. Non-ASCII characters are percent-encoded.
"""
_ERRORS = """
An error has OpenAI's form: `{"error": {"message", "type", "code", "param"}}`. `type` is `invalid_request_error` below 500, else
`server_error`. 429, 502 and 503 have `Retry-After`. An error within a stream is an event with `error`, without `[DONE]` after it.
"""
CODES = {
    "body_too_large": "The body is larger than `serve --max-body`, without the pictures in it.",
    "body_too_slow": "The body was not complete after 30 seconds.",
    "client_gone": "The body ended early.",
    "engine_lost": "The engine ended the answer early; send the request again.",
    "foreign_host": "Without API keys, the router answers only under the names of this machine and `serve --allowed-host`.",
    "foreign_origin": "Without API keys, requests from pages of other sites are refused.",
    "internal_error": "The router failed; its log has the traceback.",
    "invalid_api_key": "No valid API key.",
    "invalid_json": "The body is not a JSON object.",
    "invalid_picture": "A picture cannot be read, or is too large.",
    "invalid_type": "A field has a value of the wrong type.",
    "invalid_value": "A field's value is out of range.",
    "missing_messages": "There are no messages.",
    "missing_model": "There is no `model`.",
    "model_not_found": "No such model, version or alias is served.",
    "not_ready": "The version or its engine is not ready yet.",
    "pictures_not_supported": "The version, or the base, reads text only.",
    "rate_limit_exceeded": "The key's requests per minute are used up.",
    "too_many_concurrent_requests": "The key's `concurrent_requests` are running.",
    "too_many_large_requests": "Too many requests above 32 kB, or with pictures, wait, of this key or of all.",
    "too_many_messages": "The request has more than 2,048 messages.",
    "unknown_field": "The body has a field that is not in the table above.",
    "unknown_route": "There is no such route, or it has another method.",
    "unsupported_content": "A message has content other than texts and pictures.",
}
"""Every error code; a test compares the names with the code."""


def render() -> str:
    """Return the page."""
    fields = (
        (code(route), ", ".join(code(field) for field in sorted(names))) for route, names in sorted(FIELDS.items())
    )
    statuses = error_statuses()
    errors = ((code(name), ", ".join(sorted(statuses.get(name, {"400"}))), text) for name, text in CODES.items())
    return page(
        "HTTP API",
        _INTRODUCTION,
        "## Routes",
        table(("method", "path", "what it returns"), _routes()),
        "## Models",
        _MODELS,
        "## Fields of a request",
        "A field that is not listed is refused, so that no request can change an engine's settings.",
        table(("route", "fields"), fields),
        "## Receipts",
        _RECEIPTS,
        table(("header", "meaning"), ((code(name), text) for name, text in HEADERS.items())),
        "## Errors",
        _ERRORS,
        table(("code", "status", "meaning"), errors),
        "## Metrics",
        "`GET /metrics` returns them in Prometheus' text format. The label `version` is a version's number, or `base`.",
        table(("metric", "type", "labels", "meaning"), _metrics()),
    )


def _routes() -> Iterator[tuple[str, str, str]]:
    nothing = cast(Any, None)
    app = Router(nothing, nothing, None, Metrics(), RouterSettings(), nothing).app
    for route in app.routes:
        assert isinstance(route, Route)
        path = route.path.replace(":path", "")
        method = next(iter((route.methods or set()) - {"HEAD"}))
        yield method, code(path), _ROUTES[path]


def _metrics() -> Iterator[tuple[str, str, str, str]]:
    metrics = [value for value in vars(Metrics()).values() if hasattr(value, "_labelnames")]
    for metric in metrics:
        described = next(iter(metric.describe()))
        suffix = "_total" if described.type == "counter" else ""
        labels = ", ".join(code(label) for label in metric._labelnames)
        yield code(f"{described.name}{suffix}"), described.type, labels, f"{described.documentation}."


def error_statuses() -> dict[str, set[str]]:
    """Return the HTTP statuses of each error code, read from the calls ``RequestError(status, message, code)``."""
    statuses: dict[str, set[str]] = {}
    for module in (router, requests, own_hosts, large_requests, answering, responders):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RequestError" and len(node.args) > 2:
                status, name = node.args[0], node.args[2]
                if isinstance(name, ast.Constant):
                    known = isinstance(status, ast.Constant)
                    statuses.setdefault(str(name.value), set()).add(str(status.value) if known else "404, 405")
    return statuses
