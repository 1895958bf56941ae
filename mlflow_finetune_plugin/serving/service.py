"""Run a service: the follower, the engines, the router and the HTTP server start and end together."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from mlflow_finetune_plugin.credentials.api_keys import Keys
from mlflow_finetune_plugin.errors import ConfigError, EngineChoiceError, TrackingError, without_secrets
from mlflow_finetune_plugin.serving.connections import ConnectionLimits, total_connections
from mlflow_finetune_plugin.serving.engines.certificate import Certificate
from mlflow_finetune_plugin.serving.engines.fleet import Fleet
from mlflow_finetune_plugin.serving.host_rules import LOOPBACK_NAMES, plain_name
from mlflow_finetune_plugin.serving.http_server import HttpServer, http_config
from mlflow_finetune_plugin.serving.router.follower import Follower
from mlflow_finetune_plugin.serving.router.metrics import Metrics
from mlflow_finetune_plugin.serving.router.router import Router, RouterSettings
from mlflow_finetune_plugin.serving.router.served_log import ServedLog
from mlflow_finetune_plugin.serving.settings import ServiceSettings, check_settings
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.bases import Bases
from mlflow_finetune_plugin.serving.versions.catalog import Catalog
from mlflow_finetune_plugin.serving.versions.fetching import FetchedVersion, Fetcher
from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder
from mlflow_finetune_plugin.store.names import CERTIFICATE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_DRAIN_S = 30


class Service:
    """A service of registered models.

    Raises:
        ConfigError: A setting is not valid.
    """

    def __init__(self, settings: ServiceSettings, client: MlflowClient) -> None:
        check_settings(settings)
        self.settings, self._client = settings, client
        keys = Keys(settings.api_key_file) if settings.api_key_file is not None else None
        store = AdapterStore(settings.store, settings.max_store)
        self._workplace = ScratchFolder(settings.store)
        self.fleet = Fleet(
            settings.engine,
            settings.limits,
            self._workplace.folder / "engines",
            Bases(settings.base_models).find,
            self._note_certificate,
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            max_loaded=settings.max_loaded,
            max_engines=settings.max_engines,
        )
        self.catalog = Catalog(client, settings.models)
        self.follower = Follower(
            self.catalog, Fetcher(client, store, self._workplace), self.fleet, settings.store, poll_s=settings.poll_s
        )
        self.metrics = Metrics()
        router_settings = RouterSettings(settings.max_body, settings.webhook_secret, _hosts(settings))
        self.served = ServedLog(client, settings.port, every_s=settings.report_every_s)
        self.router = Router(self.follower, self.fleet, keys, self.metrics, router_settings, self.served.note)
        self._tasks: set[asyncio.Task[None]] = set()

    def check_models(self) -> None:
        """Check that the registry has the models. A registry that does not answer is logged; the follower waits for it.

        Raises:
            ConfigError: The registry answers, and does not have one of the models.
        """
        try:
            self.catalog.read()
        except TrackingError as error:
            logger.warning("registry_away fault=%s", error)
        except ConfigError as error:
            self._workplace.remove()
            where = f"(registry: {_registry()}; fix: use a name that it has, or set MLFLOW_TRACKING_URI to the one that has it)"
            raise ConfigError([f"{problem} {where}" for problem in error.problems]) from error
        except BaseException:
            self._workplace.remove()
            raise

    async def run(self, on_listening: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGINT or SIGTERM; then refuse new requests, finish running answers, and end the engines.

        Args:
            on_listening: Called when the service accepts connections.

        Raises:
            SystemExit: uvicorn cannot listen on the port; the OSError is its context.
            EngineChoiceError: The engine can serve none of the models.
        """
        limits = ConnectionLimits(self.settings.max_connections, total_connections())
        config = http_config(
            self.router.app,
            limits,
            drain_s=_DRAIN_S,
            lifespan="off",
            host=self.settings.host,
            port=self.settings.port,
        )
        server = HttpServer(config, on_listening)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.end)
        following = asyncio.create_task(self.follower.run())
        telling = asyncio.create_task(self.served.run())
        following.add_done_callback(lambda task: _end_with(task, server))
        try:
            await server.serve()
        finally:
            following.cancel()
            telling.cancel()
            await asyncio.gather(following, telling, return_exceptions=True)
            await self.fleet.stop()
            self._workplace.remove()
        if not following.cancelled():
            following.result()  # raises the follower's error

    def _note_certificate(self, version: FetchedVersion, certificate: Certificate) -> None:
        """Write a certificate in the background, as a tag of the version and an artifact of its run."""
        task = asyncio.create_task(asyncio.to_thread(self._write_certificate, version, certificate))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _write_certificate(self, version: FetchedVersion, certificate: Certificate) -> None:
        from mlflow.exceptions import MlflowException

        served = f"{certificate.engine}.{certificate.precision.replace('+', '-')}"
        tag = f"{CERTIFICATE_TAG}{served}"
        try:
            registered = self._client.get_model_version(version.model, version.number)
            if dict(registered.tags).get(tag) == certificate.summary:
                return
            self._client.set_model_version_tag(version.model, version.number, tag, certificate.summary)
            if registered.run_id:
                file = f"certificates/{version.model}-{version.number}-{served}.json"
                self._client.log_text(registered.run_id, certificate.to_json(), file)
        except (MlflowException, OSError) as error:
            logger.warning("certificate_not_written version=%s fault=%s", version.served_name, error)


def _end_with(task: asyncio.Task[None], server: uvicorn.Server) -> None:
    """End the server if the follower ends: nothing can be served, or it has a bug, and a service must follow the registry."""
    error = None if task.cancelled() else task.exception()
    if error is None:
        return
    if not isinstance(error, EngineChoiceError):
        logger.critical("follower_broken", exc_info=error)
    server.should_exit = True


def _hosts(settings: ServiceSettings) -> frozenset[str] | None:
    """Return the names under which a service without API keys answers; None for one with keys."""
    if settings.api_key_file is not None:
        return None
    return frozenset(plain_name(host) for host in (*LOOPBACK_NAMES, settings.host, *settings.allowed_hosts))


def _registry() -> str:
    import mlflow

    return without_secrets(mlflow.get_registry_uri())


def ignore_hangup() -> None:
    """Ignore SIGHUP, so that a service outlives the shell that started it."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
