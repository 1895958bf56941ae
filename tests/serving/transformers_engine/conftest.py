"""One engine on the packaged base with an adapter of every kind, for all tests of its answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from engine_process import EMBEDDED, EngineProcess, engine
from tiny_adapters import KINDS, load_adapter, load_model, save_adapter
from transformers import AutoTokenizer


@dataclass
class Models:
    """The same models in this process, to compare with."""

    adapters: dict[str, Path]
    tokenizer: Any
    _loaded: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            is_base = name == "base"
            self._loaded[name] = load_model(EMBEDDED) if is_base else load_adapter(EMBEDDED, self.adapters[name])
        return self._loaded[name]

    @property
    def names(self) -> list[str]:
        return ["base", *self.adapters]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("adapters")
    return Models(
        {kind: save_adapter(kind, EMBEDDED, folder / kind) for kind in KINDS}, AutoTokenizer.from_pretrained(EMBEDDED)
    )


@pytest.fixture(scope="session")
def running(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    with engine(tmp_path_factory.mktemp("engine")) as process:
        for name, path in models.adapters.items():
            reply = process.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(path))
            assert reply.status == 200, reply.text
        yield process
