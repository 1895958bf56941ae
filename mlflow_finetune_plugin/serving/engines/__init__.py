"""Run engines, the child processes that answer requests, and load adapters into them.

The room promises that a version answers only after its certificate: its log-probabilities in the engine agree with those of
the trained model. No engine outlives the service that started it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_finetune_plugin.lazy import names_on_first_use

if TYPE_CHECKING:
    from mlflow_finetune_plugin.serving.engines.blocking import BlockingEngine
    from mlflow_finetune_plugin.serving.engines.certificate import Certificate, certify
    from mlflow_finetune_plugin.serving.engines.commands import EngineSpec, choose_engine
    from mlflow_finetune_plugin.serving.engines.engine import EngineProcess
    from mlflow_finetune_plugin.serving.engines.fleet import Fleet

__all__ = ["BlockingEngine", "Certificate", "EngineProcess", "EngineSpec", "Fleet", "certify", "choose_engine"]

__getattr__ = names_on_first_use(
    __name__,
    {
        "BlockingEngine": "blocking",
        "Certificate": "certificate",
        "EngineProcess": "engine",
        "EngineSpec": "commands",
        "Fleet": "fleet",
        "certify": "certificate",
        "choose_engine": "commands",
    },
)
