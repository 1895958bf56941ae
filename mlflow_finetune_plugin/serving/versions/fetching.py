"""Fetch versions from the registry. Each is fetched once and verified, and its adapter stays in the store while it is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.errors import ServingError, StoreError, TrackingError, in_short
from mlflow_finetune_plugin.serving.versions.adapter_config import adapter_modules, adapter_rank, check_adapter_config
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore, HeldAdapter
from mlflow_finetune_plugin.serving.versions.card import check_card, check_reference
from mlflow_finetune_plugin.serving.versions.content_digest import (
    ADAPTER_FOLDER,
    TOKENIZER_FOLDER,
    check_content,
    check_files,
    file_digests,
    report_missing_digest,
)
from mlflow_finetune_plugin.serving.versions.names import served_name
from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder
from mlflow_finetune_plugin.serving.versions.tokenizer_store import TokenizerStore, chat_digest, folder_fault
from mlflow_finetune_plugin.serving.versions.version_files import fetch_files, read_json
from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG, CARD_FILE, CONTENT_DIGEST_TAG, REFERENCE_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_REFUSED_S = 600.0


@dataclass(frozen=True)
class EngineKey:
    """What versions must share to be served by one engine."""

    base_digest: str
    dtype: str
    quantization: str | None
    tokenizer_digest: str

    @property
    def precision(self) -> str:
        """The precision as references name it: ``bfloat16``, or ``bfloat16+nf4``."""
        return f"{self.dtype}+{self.quantization}" if self.quantization else self.dtype


@dataclass(frozen=True)
class FetchedVersion:
    """A version that is ready to be loaded.

    Attributes:
        card: Its finetune.json.
        reference: Its reference.json.
        tokenizer: The folder of its tokenizer, named by the digest of its bytes.
        tokenizer_digest: The digest of what decides which token ids a conversation becomes.
        content_digest: The digest of all that shapes its answers; None if it was registered before there was one.
    """

    model: str
    number: str
    card: dict[str, Any]
    reference: dict[str, Any]
    tokenizer: Path
    tokenizer_digest: str
    adapter: HeldAdapter
    content_digest: str | None = None

    def check_files(self) -> None:
        """Check that the files on this disk are still those that were verified. Raises ServingError, which names the file."""
        fault = folder_fault(self.tokenizer)
        if fault is None and folder_digest(self.adapter.folder) != self.adapter.digest:
            fault = f"the adapter {self.adapter.folder} was changed after it was verified"
        if fault is not None:
            raise ServingError(
                f"{self.model}/{self.number}: {fault}; fix: start the router again, which fetches it again"
            )

    @property
    def served_name(self) -> str:
        return served_name(self.model, self.number, self.adapter.digest)

    @property
    def base(self) -> dict[str, Any]:
        return dict(self.card["base_model"])

    @property
    def sees(self) -> bool:
        """Whether its base reads pictures beside text."""
        return bool(self.card.get("sees"))

    def engine_key(self, dtype: str | None = None) -> EngineKey:
        """Return the key of the engine that can serve this version.

        Args:
            dtype: The precision of serving; None means the base's own.

        Raises:
            ServingError: The base is quantised, and ``dtype`` is not its own.
        """
        base = self.base
        if dtype not in (None, base["dtype"]) and base["quantization"]:
            raise ServingError(
                f"{self.model}/{self.number}: its base is quantised to {base['quantization']} and must be served in "
                f"{base['dtype']}, as it was trained, not in {dtype}; fix: leave --dtype out"
            )
        return EngineKey(str(base["digest"]), dtype or str(base["dtype"]), base["quantization"], self.tokenizer_digest)

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The last part of the names of the layers that the adapter's weights change."""
        return adapter_modules(self.adapter.folder)

    @property
    def rank(self) -> int | None:
        """The largest rank of the adapter's updates; None if it has no rank. Raises ServingError for an invalid config."""
        return adapter_rank(self.adapter.folder, f"{self.model}/{self.number}")


@dataclass(frozen=True)
class _Registered:
    """What the registry says of a version: where its files are, and which digests they have."""

    source: str
    adapter_digest: str | None
    content_digest: str | None

    def agrees_with(self, stored: _Registered) -> bool:
        """Return whether a version in the store is still the one that the registry has."""
        same_adapter = self.adapter_digest in (None, stored.adapter_digest)
        return same_adapter and (self.source, self.content_digest) == (stored.source, stored.content_digest)

    def check(self, card: dict[str, Any], name: str) -> None:
        """Raise ServingError if the card names another adapter than the registry."""
        digest = self.adapter_digest
        if digest not in (None, card["adapter_digest"]):
            raise ServingError(
                f"{name}: its tag {ADAPTER_DIGEST_TAG} says {str(digest)[:12]}, its card {card['adapter_digest'][:12]}; "
                "fix: find out who changed it, then register it again"
            )


class Fetcher:
    """Fetches versions from the registry into the store. Its methods block.

    Versions do not change, but may be deleted. The registry's answer about a version is valid for ``fresh_s`` seconds.
    """

    def __init__(
        self,
        client: MlflowClient,
        store: AdapterStore,
        workplace: ScratchFolder | None = None,
        *,
        fresh_s: float = 60.0,
    ) -> None:
        self._client, self._store, self._fresh_s = client, store, fresh_s
        self._workplace = workplace if workplace is not None else ScratchFolder(store.root)
        self._tokenizers = TokenizerStore(store.root / "tokenizers", self._workplace)
        self._registered: dict[tuple[str, str], tuple[float, _Registered]] = {}
        self._refused: dict[tuple[str, str], tuple[float, _Registered, ServingError]] = {}

    def fetch(self, model: str, number: str) -> FetchedVersion:
        """Return a verified version and hold its adapter.

        A refusal is remembered until the version has another source or digest in the registry, at most for ten minutes.

        Raises:
            TrackingError: The registry or the artifacts cannot be reached.
            ServingError: There is no such version, it cannot be served, or its files are not as they were registered.
            StoreError: The adapter does not have its digest, or there is no room for it.
        """
        record = self._store.root / "versions" / f"{_sha(model, number)}.json"
        try:
            registered = self._source(model, number)
        except TrackingError:
            version = self._from_disk(record, model, number, None)
            if version is None:
                raise
            return version  # versions do not change, so one that was verified is good without the registry
        version = self._from_disk(record, model, number, registered)
        if version is not None:
            return version
        refused_at, refused, reason = self._refused.get((model, number), (0.0, None, ServingError()))
        if refused == registered and time.monotonic() - refused_at < _REFUSED_S:
            raise type(reason)(str(reason))
        try:
            return self._from_registry(record, model, number, registered)
        except ServingError as error:
            self._refused[model, number] = (time.monotonic(), registered, type(error)(str(error)))
            raise

    def confirm(self, model: str, number: str) -> None:
        """Check that the registry still has a version. Raises ServingError if not, TrackingError if it cannot be reached."""
        self._source(model, number)

    def _source(self, model: str, number: str) -> _Registered:
        answered_at, registered = self._registered.get((model, number), (0.0, None))
        if registered is not None and time.monotonic() - answered_at < self._fresh_s:
            return registered
        self._registered.pop((model, number), None)
        registered = self._ask(model, number)
        self._registered[model, number] = (time.monotonic(), registered)
        return registered

    def _ask(self, model: str, number: str) -> _Registered:
        from mlflow.exceptions import MlflowException

        try:
            version = self._client.get_model_version(model, number)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise ServingError(f"{model}/{number}: the registry has no such version") from error
            raise TrackingError(f"{model}/{number} cannot be read from the registry: {in_short(error)}") from error
        except Exception as error:  # stores raise errors of their own when their database or network is gone
            raise TrackingError(f"{model}/{number} cannot be read from the registry: {in_short(error)}") from error
        if version.status != "READY":
            raise ServingError(f"{model}/{number}: is {version.status} in the registry, not READY")
        tags = dict(version.tags)
        return _Registered(str(version.source), tags.get(ADAPTER_DIGEST_TAG), tags.get(CONTENT_DIGEST_TAG))

    def _from_disk(
        self, record: Path, model: str, number: str, registered: _Registered | None
    ) -> FetchedVersion | None:
        """Return a version that was verified before; None if a part is missing or changed, or the registry has another one."""
        name = f"{model}/{number}"
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            card, reference = content["card"], content["reference"]
            check_card(card, name)
            tokenizer = self._tokenizers.get(str(content["tokenizer"]))
            entry = _Registered(str(content["source"]), card["adapter_digest"], content["content_digest"])
            if tokenizer is None or (registered is not None and not registered.agrees_with(entry)):
                return None
            check_content(file_digests(reference, tokenizer), card, entry.content_digest, name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ServingError) as error:
            logger.warning("record_unreadable file=%s fault=%s", record, error)  # the version is fetched again
            return None
        held = self._store.hold(card["adapter_digest"])
        if held is None:
            return None
        return self._version(model, number, card, reference, tokenizer, entry.content_digest, held)

    def _from_registry(self, record: Path, model: str, number: str, registered: _Registered) -> FetchedVersion:
        name = f"{model}/{number}"
        folder = self._workplace.draft()
        try:
            artifacts = fetch_files(f"models:/{name}", folder, name)
            check_files(artifacts, name)
            card, reference = (read_json(artifacts / file, name) for file in (CARD_FILE, REFERENCE_FILE))
            check_card(card, name)
            check_reference(reference, name)
            registered.check(card, name)
            tokenizer = self._tokenizers.add(artifacts / TOKENIZER_FOLDER, name)
            check_content(file_digests(reference, tokenizer), card, registered.content_digest, name)
            held = self._store.add(artifacts / ADAPTER_FOLDER, str(card["adapter_digest"]))
            content: dict[str, Any] = {"card": card, "reference": reference, "tokenizer": tokenizer.name}
            content |= {"source": registered.source, "content_digest": registered.content_digest}
            try:
                check_adapter_config(held.folder, name)
                _write(record, content)
                version = self._version(model, number, card, reference, tokenizer, registered.content_digest, held)
            except BaseException:
                held.release()
                raise
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{name} cannot be stored in {self._store.root}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if registered.content_digest is None:
            report_missing_digest(name)
        return version

    def _version(
        self,
        model: str,
        number: str,
        card: dict[str, Any],
        reference: dict[str, Any],
        tokenizer: Path,
        digest: str | None,
        held: HeldAdapter,
    ) -> FetchedVersion:
        key = chat_digest(tokenizer, f"{model}/{number}")
        return FetchedVersion(model, number, card, reference, tokenizer, key, held, digest)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content), encoding="utf-8")
    os.replace(draft, path)


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
