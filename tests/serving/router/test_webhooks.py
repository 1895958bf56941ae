"""Against MLflow's own signature."""

import json

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

from mlflow_finetune_plugin.serving.router.webhooks import is_true_webhook

BODY = json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": "b\u00f6t"}}).encode()
NOW = 1_800_000_000


def headers(secret="s", body=BODY, stamp=str(NOW), delivery="d1"):
    signature = _generate_hmac_signature(secret, delivery, stamp, body.decode())
    return {"X-MLflow-Signature": signature, "X-MLflow-Timestamp": stamp, "X-MLflow-Delivery-Id": delivery}


def test_what_mlflow_signed_is_true():
    assert is_true_webhook("s", headers(), BODY, NOW + 200)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "body", "now"),
    [
        (headers(secret="other"), BODY, NOW),
        (headers(), BODY + b" ", NOW),
        ({**headers(), "X-MLflow-Delivery-Id": "d2"}, BODY, NOW),
        ({**headers(), "X-MLflow-Timestamp": str(NOW + 1)}, BODY, NOW),
        (headers(), BODY, NOW + 301),
        (headers(stamp=str(NOW + 400)), BODY, NOW),
        ({**headers(), "X-MLflow-Timestamp": "\u0661"}, BODY, NOW),
        ({**headers(), "X-MLflow-Signature": "v1,"}, BODY, NOW),
        ({}, BODY, NOW),
    ],
)
def test_anything_else_is_forged(changed, body, now):
    assert not is_true_webhook("s", changed, body, now)
