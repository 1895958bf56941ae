"""Fetch versions from the registry. Each is fetched once and verified, and its adapter stays in the store while it is used."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from mlflow_finetune_plugin.errors import ServingError, StoreError, TrackingError, in_short
from mlflow_finetune_plugin.serving.versions.adapter_store import AdapterStore, HeldAdapter
from mlflow_finetune_plugin.serving.versions.card import check_card, check_reference
from mlflow_finetune_plugin.serving.versions.names import served_name
from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder
from mlflow_finetune_plugin.store.names import ADAPTER_DIGEST_TAG, CARD_FILE, REFERENCE_FILE

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_SHA = re.compile(r"[0-9a-f]{64}")
_NOT_FOR_CHATS = (
    "is_local",
    "local_files_only",
    "max_length",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "padding_side",
    "stride",
    "tokenizer_file",
    "truncation_side",
    "truncation_strategy",
)
"""Settings of a tokenizer that change no token id of a conversation, and may differ from one training to the next."""


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
    """A version that is ready to be loaded. ``card`` and ``reference`` are its finetune.json and reference.json."""

    model: str
    number: str
    card: dict[str, Any]
    reference: dict[str, Any]
    tokenizer: Path
    tokenizer_digest: str
    adapter: HeldAdapter

    @property
    def served_name(self) -> str:
        return served_name(self.model, self.number, self.adapter.digest)

    @property
    def base(self) -> dict[str, Any]:
        return dict(self.card["base_model"])

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
        with safe_open(self.adapter.folder / "adapter_model.safetensors", "np") as weights:
            layers = {re.split(r"\.lora_|\.ia3_|\.bottleneck", name)[0] for name in list(weights.keys())}
        return tuple(sorted({layer.rsplit(".", 1)[-1] for layer in layers}))

    @property
    def rank(self) -> int | None:
        """The largest rank of the adapter's updates; None if it has no rank. Raises ServingError for an invalid config."""
        config = _json(self.adapter.folder / "adapter_config.json", f"{self.model}/{self.number}")
        pattern = config.get("rank_pattern") or {}
        if not isinstance(pattern, dict):
            raise ServingError(f"{self.model}/{self.number}: its rank_pattern is not an object; fix: register it again")
        ranks = [config.get("r"), *pattern.values()]
        return max((rank for rank in ranks if isinstance(rank, int)), default=None)


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
        self._sources: dict[tuple[str, str], tuple[float, str, str | None]] = {}

    def fetch(self, model: str, number: str) -> FetchedVersion:
        """Return a verified version and hold its adapter.

        Raises:
            TrackingError: The registry or the artifacts cannot be reached.
            ServingError: There is no such version, or it cannot be served.
            StoreError: The adapter does not have its digest, or there is no room for it.
        """
        record = self._store.root / "versions" / f"{_sha(model, number)}.json"
        try:
            source, digest = self._source(model, number)
        except TrackingError:
            version = self._from_disk(record, model, number, None, None)
            if version is None:
                raise
            return version  # versions do not change, so one that was verified is good without the registry
        return self._from_disk(record, model, number, source, digest) or self._from_registry(
            record, model, number, source, digest
        )

    def confirm(self, model: str, number: str) -> None:
        """Check that the registry still has a version. Raises ServingError if not, TrackingError if it cannot be reached."""
        self._source(model, number)

    def _source(self, model: str, number: str) -> tuple[str, str | None]:
        answer = self._sources.get((model, number))
        if answer is not None and time.monotonic() - answer[0] < self._fresh_s:
            return answer[1:]
        self._sources.pop((model, number), None)
        source, digest = self._ask(model, number)
        self._sources[model, number] = (time.monotonic(), source, digest)
        return source, digest

    def _ask(self, model: str, number: str) -> tuple[str, str | None]:
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
        return str(version.source), dict(version.tags).get(ADAPTER_DIGEST_TAG)

    def _from_disk(
        self, record: Path, model: str, number: str, source: str | None, tagged: str | None
    ) -> FetchedVersion | None:
        """Return a version that was verified before; None if a part is missing, or the registry has another one by now."""
        try:
            content = json.loads(record.read_text(encoding="utf-8"))
            card, reference, digest = content["card"], content["reference"], str(content["tokenizer_digest"])
            check_card(card, f"{model}/{number}")
            if not _SHA.fullmatch(digest):
                raise ValueError("the tokenizer's digest is not valid")
            is_other = source not in (None, content["source"]) or tagged not in (None, card["adapter_digest"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ServingError) as error:
            logger.warning("record_unreadable file=%s fault=%s", record, error)  # the version is fetched again
            return None
        tokenizer = self._tokenizer_folder(digest)
        if is_other or not tokenizer.is_dir():
            return None
        held = self._store.hold(card["adapter_digest"])
        return None if held is None else FetchedVersion(model, number, card, reference, tokenizer, digest, held)

    def _from_registry(self, record: Path, model: str, number: str, source: str, digest: str | None) -> FetchedVersion:
        name = f"{model}/{number}"
        folder = self._workplace.draft()
        try:
            artifacts = _download(f"models:/{name}", folder, name) / "artifacts"
            card, reference = (_json(artifacts / file, name) for file in (CARD_FILE, REFERENCE_FILE))
            check_card(card, name)
            check_reference(reference, name)
            if digest is not None and digest != card["adapter_digest"]:
                raise ServingError(
                    f"{name}: its tag {ADAPTER_DIGEST_TAG} says {digest[:12]}, its card {card['adapter_digest'][:12]}; "
                    "fix: find out who changed it, then register it again"
                )
            held = self._store.add(artifacts / "adapter", str(card["adapter_digest"]))
            try:
                tokenizer_digest = _tokenizer_digest(artifacts / "tokenizer", name)
                tokenizer = self._keep_tokenizer(artifacts / "tokenizer", tokenizer_digest)
                content = {"source": source, "card": card, "reference": reference, "tokenizer_digest": tokenizer_digest}
                _write(record, content)
            except BaseException:
                held.release()
                raise
        except OSError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{name} cannot be stored in {self._store.root}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return FetchedVersion(model, number, card, reference, tokenizer, tokenizer_digest, held)

    def _tokenizer_folder(self, digest: str) -> Path:
        return self._store.root / "tokenizers" / digest

    def _keep_tokenizer(self, source: Path, digest: str) -> Path:
        """Store a tokenizer whole or not at all; an engine may be reading the one that is stored."""
        target = self._tokenizer_folder(digest)
        if not target.is_dir():
            target.parent.mkdir(parents=True, exist_ok=True)
            draft = self._workplace.draft()
            for path in source.iterdir():
                if path.suffix in (".json", ".jinja", ".model", ".txt") and path.is_file() and not path.is_symlink():
                    shutil.copyfile(path, draft / path.name)
            try:
                draft.rename(target)
            except OSError:
                shutil.rmtree(draft, ignore_errors=True)
                if not target.is_dir():  # else another process was quicker
                    raise
        return target


def _download(uri: str, folder: Path, name: str) -> Path:
    import mlflow

    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except Exception as error:  # each artifact store raises different errors
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            raise
        raise TrackingError(f"the artifacts of {name} cannot be downloaded: {in_short(error)}") from error


def _json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ServingError(
            f"{name}: has no {path.name}, so mlflow-finetune did not register it; fix: name a version that one of its runs "
            "registered"
        ) from error
    except (ValueError, OSError, RecursionError) as error:  # nested too deeply
        raise ServingError(f"{name}: {path.name} cannot be read: {error}; fix: register it again") from error
    if not isinstance(content, dict):
        raise ServingError(f"{name}: {path.name} is not a JSON object; fix: register it again")
    return content


def _tokenizer_digest(folder: Path, name: str) -> str:
    """Return the digest of everything that decides which token ids a conversation becomes."""
    settings = _json(folder / "tokenizer_config.json", name)
    template = folder / "chat_template.jinja"
    if not (template.is_file() or settings.get("chat_template")) or not (folder / "tokenizer.json").is_file():
        raise ServingError(f"{name}: its tokenizer is incomplete; fix: register it again")
    telling = {key: value for key, value in settings.items() if key not in _NOT_FOR_CHATS}
    total = hashlib.sha256(json.dumps(telling, sort_keys=True).encode())
    for path in (folder / "tokenizer.json", template):
        total.update(b"\0" + path.name.encode() + b"\0" + (path.read_bytes() if path.is_file() else b""))
    return total.hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content), encoding="utf-8")
    os.replace(draft, path)


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
