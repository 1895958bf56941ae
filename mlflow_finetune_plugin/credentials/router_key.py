"""The environment variable that holds a client's API key for the router."""

from __future__ import annotations

ROUTER_KEY = "MLFLOW_FINETUNE_API_KEY"
