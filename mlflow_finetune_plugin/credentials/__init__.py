"""API keys of the router and users of the playground. Files hold hashes only, and a change counts at the next request."""

from __future__ import annotations

from mlflow_finetune_plugin.credentials.api_keys import Key, Keys, add_key
from mlflow_finetune_plugin.credentials.router_key import ROUTER_KEY
from mlflow_finetune_plugin.credentials.users import User, Users, add_user, read_users, remove_user

__all__ = ["ROUTER_KEY", "Key", "Keys", "User", "Users", "add_key", "add_user", "read_users", "remove_user"]
