"""``ft.serve``: registered models behind OpenAI's API, in a child process of the caller."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.process import RunningService


def serve(
    *models: str, port: int = 0, on_progress: Callable[[str], None] = lambda line: None, **settings: Any
) -> RunningService:
    """Serve registered models until the returned service is closed, or this process ends.

    Use the service as a context manager: ``with ft.serve("my-bot") as service: OpenAI(base_url=service.url, ...)``.

    Args:
        models: names of registered models, in any form that the commands take; their aliases are followed live.
        port: 0 takes a free port.
        on_progress: receives a line whenever what the service waits for changes.
        settings: the options of ``mlflow-finetune serve`` by their field names, for example ``engine="transformers"``.

    Raises:
        ConfigError: a setting is not valid, or the registry has no such model.
        TrackingError: there is no tracking store, or it does not answer.
        EngineError: the service ended, or was not ready in time; the message holds the end of its log.
    """
    from mlflow_finetune_plugin.errors import ConfigError, unknown
    from mlflow_finetune_plugin.serving.process import serve as start
    from mlflow_finetune_plugin.serving.settings import SETTINGS, service_settings
    from mlflow_finetune_plugin.store.model_ref import model_name

    known = [setting.field_name for setting in SETTINGS]
    if problems := [unknown("setting of serve", name, known) for name in settings if name not in known]:
        raise ConfigError(problems)
    names = tuple(map(model_name, models))
    return start(service_settings(names, {**settings, "port": port}), on_progress=on_progress)
