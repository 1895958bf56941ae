"""Registered versions without a training: adapters with random weights, their references told by Transformers and PEFT."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from shown_pictures import BLUE, RED, picture
from tiny_adapters import load_model, save_adapter
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER, sees
from mlflow_finetune_plugin.base_models.weights_digest import base_digest, folder_digest
from mlflow_finetune_plugin.config.sections import MAX_PRECISION_GAP
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.images import PictureInputs
from mlflow_finetune_plugin.images.prompts import PicturePrompt
from mlflow_finetune_plugin.images.store import PicturesInMemory
from mlflow_finetune_plugin.images.turns import MARK
from mlflow_finetune_plugin.logged_models.adapter import log_adapter, make_reference, probe_log_probs
from mlflow_finetune_plugin.logged_models.precisions import served_as
from mlflow_finetune_plugin.logged_models.reference_answers import Decoding
from mlflow_finetune_plugin.serving.versions.content_digest import content_digest, file_digests
from mlflow_finetune_plugin.store.registry import register_adapter

QUESTIONS = (
    "where is my card?",
    "how do I cancel the order 77?",
    "is the shop open on Sunday?",
    "I want my money back",
)
ANSWERS = ("card", "cancellation", "opening hours", "refund please")


class VersionMaker:
    """Registers versions of models on one base."""

    def __init__(self, tracking_uri: str, base: Path = EMBEDDED_FOLDER, name: str = "embedded") -> None:
        mlflow.set_tracking_uri(tracking_uri)  # the registry follows it, unless somebody has set that for good
        self.uri, self.client = tracking_uri, MlflowClient(tracking_uri)
        self.base, self.name = base, name
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.pictures = _inputs_of(base)
        renderer = ChatRenderer(self.tokenizer, weights=base, pictures=self.pictures)
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = renderer.chat_template
        self.stops, self.prefix = list(renderer.stop_token_ids), renderer.answer_prefix
        self.rows = []
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
            messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
            self.rows.append(_row(renderer, messages))
        self.rows += [_row(renderer, messages) for messages in self._chats_about_pictures(renderer)]
        self.plain = load_model(base)
        self._base_log_probs = probe_log_probs(self.plain, self.tokenizer, self.rows)
        self.digest = base_digest(base)

    def _chats_about_pictures(self, renderer: ChatRenderer) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Chats for a base that sees: equal questions about other pictures, which the renderer then has."""
        shapes = [picture(RED), picture(BLUE, round_shape=True)] if self.pictures else []
        renderer.picture_store = PicturesInMemory({shape.sha256: PicturesInMemory.encoded(shape) for shape in shapes})
        for shape, answer in zip(shapes, ("square", "circle"), strict=False):
            question = {"role": "user", "content": f"{MARK}What shape is it?", "pictures": [shape.sha256]}
            yield question, {"role": "assistant", "content": answer}

    def make(
        self,
        model: str,
        *,
        seed: int,
        kind: str = "lora",
        serving: str = "vllm",
        precisions: Sequence[str] = ("float32",),
        max_gap: float = MAX_PRECISION_GAP,
        **settings: Any,
    ) -> str:
        """A new version, alias challenger on it; its number."""
        from peft import PeftModel

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            adapter = save_adapter(kind, self.base, folder / "adapter", seed=seed, **settings)
            for extra in adapter.glob("*.md"):
                extra.unlink()
            adapted = PeftModel.from_pretrained(load_model(self.base), str(adapter)).eval()
            reference = self._reference(adapted, precisions, max_gap)
            run = self.client.create_run(self._experiment())
            digest = folder_digest(adapter)
            card = self._card(kind, serving, digest)
            logged = log_adapter(
                adapter,
                self.tokenizer,
                run_id=run.info.run_id,
                name="model",
                base=SimpleNamespace(name=self.name, quantization=None),
                card=card,
                reference=reference,
                folder=folder,
                step=1,
                tags={},
                pictures=self.pictures,
            )
            self.client.set_terminated(run.info.run_id)
            tags = {"finetune.adapter_digest": digest, "finetune.content_digest": logged.content_digest}
            return register_adapter(self.client, logged.uri, model, tags=tags, description="").version

    def sign(self, model: str, number: str) -> None:
        """Register a version's files as they are now, as somebody would who can write to the registry too."""
        artifacts = self.artifacts(model, number)
        card_file = artifacts / "finetune.json"
        card = json.loads(card_file.read_text())
        card["adapter_digest"] = folder_digest(artifacts / "adapter")
        card["files"] = file_digests(json.loads((artifacts / "reference.json").read_text()), artifacts / "tokenizer")
        card_file.write_text(json.dumps(card))
        tags = {"finetune.adapter_digest": card["adapter_digest"], "finetune.content_digest": content_digest(card)}
        for tag, digest in tags.items():
            self.client.set_model_version_tag(model, number, tag, digest)

    def artifacts(self, model: str, number: str) -> Path:
        """Where a version's files lie."""
        source = self.client.get_model_version(model, number).source
        logged = self.client.get_logged_model(source.removeprefix("models:/"))
        return Path(logged.artifact_location.removeprefix("file://")) / "artifacts"

    def _reference(self, adapted: Any, precisions: Sequence[str], max_gap: float) -> Any:
        log_probs = probe_log_probs(adapted, self.tokenizer, self.rows)
        pad = int(self.tokenizer.pad_token_id or 0)
        return make_reference(
            self.tokenizer,
            self.rows,
            precision="float32",
            base=self._base_log_probs,
            adapter=log_probs,
            served_as={
                precision: served_as(
                    adapted,
                    self.rows,
                    precision,
                    trained=log_probs,
                    pad_token_id=pad,
                    max_gap=max_gap,
                    decoding=Decoding(self.tokenizer, self.stops, self.prefix, 32),
                )
                for precision in precisions
            },
        )

    def _card(self, kind: str, serving: str, digest: str) -> dict[str, Any]:
        base = {"name": self.name, "folder": str(self.base), "revision": None, "digest": self.digest}
        base |= {"dtype": "float32", "quantization": None, "attn_implementation": None, "trust_remote_code": False}
        return {
            "base_model": base,
            "adaptation": kind if kind in ("lora", "ia3", "bottleneck", "full") else "lora",
            "serving": serving,
            "adapter_digest": digest,
            "stop_token_ids": self.stops,
            "answer_prefix": self.prefix.strip(),
            "max_new_tokens": 32,
            "max_length": 256,
            **({"sees": True} if self.pictures else {}),
        }

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name("served")
        return found.experiment_id if found is not None else self.client.create_experiment("served")


def _inputs_of(base: Path) -> PictureInputs | None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return PictureInputs.load(base) if sees(config) else None


def _row(renderer: ChatRenderer, messages: Sequence[dict[str, Any]]) -> EvalRow:
    (example,) = renderer.encode(messages)
    start, end = example.last_turn()
    prompt: tuple[int, ...] = tuple(example.input_ids[:start])
    if example.pictures and renderer.pictures is not None:
        prompt = PicturePrompt(prompt, example.pictures, renderer.pictures, renderer.picture_store)
    answer = messages[-1]["content"]
    return EvalRow(tuple(messages[:-1]), prompt, tuple(example.input_ids[start:end]), answer, "t", "f", 1)


@contextmanager
def registry_of_bot(folder: Path, empty_store: Path, versions: int = 2) -> Iterator[VersionMaker]:
    """``bot``: the newest version is challenger; of two, the first is champion."""
    shutil.copy(empty_store, folder / "mlflow.db")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        maker = VersionMaker(f"sqlite:///{folder}/mlflow.db")
        for seed in range(1, versions + 1):
            maker.make("bot", seed=seed)
        if versions > 1:
            maker.client.set_registered_model_alias("bot", "champion", "1")
        yield maker
    mlflow.set_tracking_uri(before)
