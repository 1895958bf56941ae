"""Verify MLflow's webhooks. A valid one makes the router poll the registry at once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

from mlflow.webhooks.constants import (
    WEBHOOK_DELIVERY_ID_HEADER,
    WEBHOOK_SIGNATURE_HEADER,
    WEBHOOK_SIGNATURE_VERSION,
    WEBHOOK_TIMESTAMP_HEADER,
)

_LONGEST_AGO_S = 300.0


def is_true_webhook(secret: str, headers: Mapping[str, str], body: bytes, now: float | None = None) -> bool:
    """Return whether MLflow signed this body with this secret in the last five minutes."""
    delivery, stamp = headers.get(WEBHOOK_DELIVERY_ID_HEADER, ""), headers.get(WEBHOOK_TIMESTAMP_HEADER, "")
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12:
        return False
    if abs((time.time() if now is None else now) - int(stamp)) > _LONGEST_AGO_S:
        return False
    signed = f"{delivery}.{stamp}.".encode() + body
    digest = base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
    signature = headers.get(WEBHOOK_SIGNATURE_HEADER, "")
    return hmac.compare_digest(f"{WEBHOOK_SIGNATURE_VERSION},{digest}".encode(), signature.encode("utf-8", "replace"))
