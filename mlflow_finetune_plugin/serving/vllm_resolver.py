"""Let any ``vllm serve --enable-lora`` load versions from the MLflow registry: ``model="my-bot/7"``.

vLLM loads this module through the entry-point group ``vllm.general_plugins``, in each of its processes. The module does
nothing unless FINETUNE_RESOLVER_MODELS names the models that may be loaded (``my-bot,other-bot``), and vLLM uses it only with
VLLM_ALLOW_RUNTIME_LORA_UPDATING. It resolves versions and no aliases, because vLLM never resolves a name twice: an alias
would go stale without a sign. The adapter comes from the content-addressed store (FINETUNE_RESOLVER_STORE), is verified
against its digest, and must have been trained on the base that is served.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.base_models.weights_digest import base_digest
from mlflow_finetune_plugin.errors import FinetuneError, ServingError
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore
from mlflow_finetune_plugin.serving.versions.fetching import FetchedVersion, Fetcher
from mlflow_finetune_plugin.serving.versions.names import parse
from mlflow_finetune_plugin.serving.versions.vllm_support import why_not_served_by_vllm
from mlflow_finetune_plugin.store.model_ref import ModelRef

logger = logging.getLogger(__name__)

MODELS_VARIABLE = "FINETUNE_RESOLVER_MODELS"
STORE_VARIABLE = "FINETUNE_RESOLVER_STORE"
TIMEOUT_VARIABLE = "FINETUNE_RESOLVER_TIMEOUT"
_NAME = "mlflow-finetune"
_TIMEOUT_S = 60.0
_UNKNOWN_S = 30.0
_MOST_UNKNOWN = 1000


def register() -> None:
    """Register the resolver with vLLM. It may be called again, and does nothing if no model is allowed."""
    models = frozenset(filter(None, (name.strip() for name in os.environ.get(MODELS_VARIABLE, "").split(","))))
    if not models:
        return
    from vllm.lora.resolver import LoRAResolverRegistry

    if _NAME not in LoRAResolverRegistry.get_supported_resolvers():
        store = Path(os.environ.get(STORE_VARIABLE) or "~/.cache/mlflow-finetune/resolver").expanduser()
        timeout_s = float(os.environ.get(TIMEOUT_VARIABLE) or _TIMEOUT_S)
        LoRAResolverRegistry.register_resolver(_NAME, _resolver(VersionFinder(models, store), timeout_s))


class VersionFinder:
    """Finds verified versions by name. It does not need vLLM, so that it can be tested alone. Its methods block."""

    def __init__(self, models: frozenset[str], store: Path) -> None:
        self._models, self._store = models, AdapterStore(store.resolve())
        self._versions: dict[str, FetchedVersion] = {}
        self._unknown: OrderedDict[str, float] = OrderedDict()
        self._bases: dict[str, str] = {}

    def find(self, base: str, name: str) -> FetchedVersion | None:
        """Return a version, or None for a name that is not allowed or cannot be served.

        A refusal is logged with its reason, and not tried again for a while.
        """
        ref = parse(name, self._models)
        if ref is None or ref.version is None:
            return None
        if name in self._versions:
            return self._versions[name]
        if time.monotonic() < self._unknown.get(name, 0.0):
            return None
        try:
            fetched = self._fetch(base, ref)
        except FinetuneError as error:
            logger.warning("adapter %s is not loaded: %s", name, error)
            self._unknown[name] = time.monotonic() + _UNKNOWN_S
            while len(self._unknown) > _MOST_UNKNOWN:
                self._unknown.popitem(last=False)
            return None
        self._versions[name] = fetched
        return fetched

    def _fetch(self, base: str, ref: ModelRef) -> FetchedVersion:
        from mlflow import MlflowClient

        assert ref.version is not None
        version = Fetcher(MlflowClient(), self._store).fetch(ref.name, ref.version)
        try:
            if version.card["serving"] != "vllm":
                raise ServingError(why_not_served_by_vllm(version.card))
            if self._digest(base) != version.base["digest"]:
                raise ServingError(
                    f"it was trained on {version.base['name']} ({str(version.base['digest'])[:12]}), but vLLM serves {base}"
                )
        except BaseException:
            version.adapter.release()
            raise
        return version

    def _digest(self, base: str) -> str:
        """Return the digest of the base that vLLM serves: a folder, or a name in the hub's cache."""
        if base not in self._bases:
            folder = Path(base)
            if not folder.is_dir():
                from huggingface_hub import snapshot_download
                from huggingface_hub.errors import LocalEntryNotFoundError

                try:
                    folder = Path(snapshot_download(base, local_files_only=True))
                except (LocalEntryNotFoundError, OSError) as error:
                    raise ServingError(
                        f"the served base {base} is not in the hub's cache, so it cannot be compared with the adapter's base; "
                        "fix: serve it from a folder"
                    ) from error
            self._bases[base] = base_digest(folder)
        return self._bases[base]


class PatientFinder:
    """Runs one fetch at a time outside the event loop, and waits for each no longer than ``timeout_s``.

    A fetch that takes longer continues. The next request for that version waits for the same fetch.
    """

    def __init__(self, finder: VersionFinder, timeout_s: float) -> None:
        self._finder, self._timeout_s = finder, timeout_s
        self._lock = asyncio.Lock()
        self._running: dict[tuple[str, str], asyncio.Task[FetchedVersion | None]] = {}

    async def find(self, base: str, name: str) -> FetchedVersion | None:
        """Return a version; None for a name that is not allowed, cannot be served, or is not fetched in time."""
        task = self._running.get((base, name))
        if task is None:
            task = asyncio.create_task(self._find(base, name))
            self._running[base, name] = task
            task.add_done_callback(lambda done: self._running.pop((base, name), None))
        try:
            return await asyncio.wait_for(asyncio.shield(task), self._timeout_s)
        except TimeoutError:
            logger.warning("adapter %s is not loaded: the registry took more than %.0f s", name, self._timeout_s)
            return None

    async def _find(self, base: str, name: str) -> FetchedVersion | None:
        async with self._lock:
            return await asyncio.to_thread(self._finder.find, base, name)


def _resolver(finder: VersionFinder, timeout_s: float) -> Any:
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver

    patient = PatientFinder(finder, timeout_s)

    class RegistryResolver(LoRAResolver):
        async def resolve_lora(self, base_model_name: str, lora_name: str) -> LoRARequest | None:
            version = await patient.find(base_model_name, lora_name)
            if version is None:
                return None
            number = int(version.adapter.digest[:7], 16) + 1  # vLLM replaces it, but refuses 0
            return LoRARequest(lora_name=lora_name, lora_int_id=number, lora_path=str(version.adapter.folder))

    return RegistryResolver()
