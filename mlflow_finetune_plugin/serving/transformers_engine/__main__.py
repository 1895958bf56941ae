"""``python -m mlflow_finetune_plugin.serving.transformers_engine CONFIG.json`` loads a base and answers until SIGTERM."""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from mlflow_finetune_plugin.errors import ConfigError, FinetuneError
from mlflow_finetune_plugin.serving.transformers_engine.settings import (
    EngineSettings,
    check_files,
    read_key,
    read_settings,
)
from mlflow_finetune_plugin.startup import without
from mlflow_finetune_plugin.threads import ThreadChoice, choose_threads

_GRACE_S = 30
_KEEP_ALIVE_S = 75  # longer than clients keep idle connections, so that none is closed under a request


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 after SIGTERM, 1 with a message on stderr for an error, 2 for wrong arguments."""
    if len(arguments) != 1:
        print("usage: python -m mlflow_finetune_plugin.serving.transformers_engine CONFIG.json", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all answers have ended
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("mlflow_finetune_plugin", "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        _serve(read_settings(Path(arguments[0])), read_key())
    except FinetuneError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _serve(settings: EngineSettings, key: str) -> None:
    check_files(settings)
    listener = _bound(settings)  # before the weights are read, so that a port in use is reported at once
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its int8 layers warn at every product
    if settings.quantization is None:
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # PEFT would import it because it is installed
    with without("scipy", "sklearn"):
        import torch

        from mlflow_finetune_plugin.serving.transformers_engine.engine import TransformersEngine
        from mlflow_finetune_plugin.serving.transformers_engine.loading import load
        from mlflow_finetune_plugin.serving.transformers_engine.server import build_app

    base = load(settings)
    threads = ThreadChoice(settings.threads, "as set") if settings.threads is not None else None
    threads = threads or choose_threads(int(base.model.config.get_text_config().hidden_size))
    torch.set_num_threads(threads.count)
    logging.getLogger("mlflow_finetune_plugin.serving").info("compute threads: %s", threads)
    app: Any = build_app(TransformersEngine(settings, base), key)
    gc.collect()
    gc.freeze()  # later collections skip these objects, which stay; scanning them would halt all answers for 0.4 s
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S, timeout_keep_alive=_KEEP_ALIVE_S
    )
    uvicorn.Server(config).run(sockets=[listener])


def _bound(settings: EngineSettings) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise ConfigError([f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"]) from error
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
