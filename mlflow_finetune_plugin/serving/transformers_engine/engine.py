"""The Transformers engine without HTTP: the base, its adapters and the decode thread."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.serving.transformers_engine.loading import LoadedBase
from mlflow_finetune_plugin.serving.transformers_engine.preparation import Preparation
from mlflow_finetune_plugin.serving.transformers_engine.prompts import EnginePrompt
from mlflow_finetune_plugin.serving.transformers_engine.protocol import ChatRequest, CompletionRequest
from mlflow_finetune_plugin.serving.transformers_engine.scheduler import Scheduler
from mlflow_finetune_plugin.serving.transformers_engine.sequences import Sequence, Update
from mlflow_finetune_plugin.serving.transformers_engine.settings import EngineSettings
from mlflow_finetune_plugin.serving.transformers_engine.trees import Base, Tree, collect_dropped_trees

logger = logging.getLogger(__name__)


class EngineFaultError(RuntimeError):
    """A decode step failed; the message is for the client."""


@dataclass(eq=False)
class Refusal(Exception):
    """A refusal of a client's request."""

    status: int
    message: str
    kind: str = "BadRequestError"
    code: int | str | None = None
    param: str | None = None


class Exchange:
    """The sequences of one request and their updates, in the order of the steps. Close it whatever happens."""

    def __init__(self, engine: TransformersEngine, sequences: list[Sequence]) -> None:
        self._engine, self._sequences = engine, sequences
        self._updates: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()

    async def updates(self) -> AsyncIterator[tuple[int, Update]]:
        """Yield the sequence's number and its update, until all have ended. Raises EngineFaultError."""
        left = len(self._sequences)
        while left:
            index, update = await self._updates.get()
            if update.error is not None:
                raise EngineFaultError(update.error)
            left -= update.is_last
            yield index, update

    def put(self, sequence: Sequence, update: Update) -> None:
        self._updates.put_nowait((self._sequences.index(sequence), update))

    def close(self) -> None:
        """Stop the generation of unfinished sequences."""
        self._engine.forget(self._sequences)


class TransformersEngine:
    """The engine. It runs in the event loop; only the scheduler's thread runs the model."""

    def __init__(self, settings: EngineSettings, loaded: LoadedBase) -> None:
        self.settings = settings
        self._stop_token_ids = loaded.stop_token_ids
        self._tokenizer = loaded.tokenizer
        self._preparation = Preparation(loaded.tokenizer, settings.max_model_len, loaded.pictures)
        self._decoder: Any = copy.deepcopy(loaded.tokenizer)  # for the decode thread: tokenizers are not thread-safe
        self._base = Base(loaded.model)
        self._adapters: dict[str, Tree] = {}
        self._growing = asyncio.Lock()
        self._exchanges: dict[Sequence, Exchange] = {}
        self._created = int(time.time())
        self._scheduler = Scheduler(max_sequences=settings.max_num_seqs, probe=self._base.tree, post=self._post)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._scheduler.start()

    def close(self) -> None:
        self._preparation.close()
        self._scheduler.close()

    @property
    def broken(self) -> str | None:
        """Why decoding has stopped for good; None while it works."""
        return self._scheduler.broken

    @property
    def load(self) -> int:
        """The number of sequences that run or wait."""
        return self._scheduler.unfinished

    def models(self) -> list[dict[str, Any]]:
        """Return OpenAI's model list: the base, then the adapters."""
        name, card = (
            self.settings.served_model_name,
            {"object": "model", "created": self._created, "owned_by": "mlflow-finetune"},
        )
        length = self.settings.max_model_len
        base = {"id": name, **card, "root": str(self.settings.model), "parent": None, "max_model_len": length}
        return [base] + [
            {
                "id": adapter,
                **card,
                "root": str(tree.path),
                "parent": name,
                "max_model_len": length - tree.virtual_tokens,
            }
            for adapter, tree in self._adapters.items()
        ]

    async def load_adapter(self, name: str, path: str) -> None:
        """Load an adapter.

        Raises:
            Refusal: The name is in use.
            FileNotFoundError: There is no adapter at the path.
            StoreError: The files are not an adapter of this base.
        """
        async with self._growing:
            if name in self._adapters or name == self.settings.served_model_name:
                raise Refusal(400, f"the name {name!r} is already loaded; fix: unload it first, or choose another")
            self._adapters[name] = await asyncio.to_thread(self._base.grow, Path(path))
        logger.info("adapter_loaded name=%s", name)

    async def unload_adapter(self, name: str) -> None:
        """Unload an adapter. Running sequences finish with it. Raises Refusal if it is not loaded."""
        if self._adapters.pop(name, None) is None:
            raise Refusal(404, f"the adapter {name!r} is not loaded", "NotFoundError")
        await asyncio.to_thread(collect_dropped_trees)

    async def open(self, request: ChatRequest | CompletionRequest) -> tuple[Exchange, list[list[int]]]:
        """Start answering a request. Returns the exchange and the prompts' token ids. Raises Refusal."""
        tree = self._tree(request.model)
        try:
            prompts = await self._preparation.prompts(request)
            choices = request.choices
            sequences = [
                sequence
                for number, prompt in enumerate(prompts)
                for sequence in self._sequences(tree, prompt, request, range(number * choices, (number + 1) * choices))
            ]
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        exchange = Exchange(self, sequences)
        self._exchanges.update(dict.fromkeys(sequences, exchange))
        try:
            self._scheduler.submit(sequences)
        except RuntimeError as error:
            self.forget(sequences)
            raise Refusal(503, str(error), "ServiceUnavailableError") from error
        return exchange, [prompt.ids for prompt in prompts]

    def forget(self, sequences: list[Sequence]) -> None:
        """End sequences that have not ended."""
        for sequence in sequences:
            self._exchanges.pop(sequence, None)
        self._scheduler.cancel(sequences)

    def token_text(self, token: int) -> str:
        """Return the text of a single token, special or not."""
        return str(self._tokenizer.decode([token]))

    def _tree(self, name: str) -> Tree:
        if name == self.settings.served_model_name:
            return self._base.tree
        if name not in self._adapters:
            names = ", ".join([self.settings.served_model_name, *self._adapters])
            raise Refusal(
                404, f"no model {name!r}; fix: one of {names}", "NotFoundError", code="model_not_found", param="model"
            )
        return self._adapters[name]

    def _sequences(
        self, tree: Tree, prompt: EnginePrompt, request: ChatRequest | CompletionRequest, choices: range
    ) -> list[Sequence]:
        limit = self.settings.max_model_len - tree.virtual_tokens
        if not prompt.ids:
            raise ValueError("prompt: empty; fix: send at least one token")
        if max(prompt.ids) >= tree.vocabulary_size:
            raise ValueError(f"prompt: token id {max(prompt.ids)} is beyond the vocabulary of {tree.vocabulary_size}")
        if len(prompt.ids) >= limit:
            raise ValueError(
                f"prompt: {len(prompt.ids)} tokens leave no room for an answer in the context length of {limit}; fix: shorten it"
            )
        sampling = request.sampling(max_tokens=request.answer_tokens(limit - len(prompt.ids)))
        return [
            Sequence(
                tree,
                prompt.ids,
                sampling,
                pictures=prompt.pictures,
                tokenizer=self._decoder,
                stop_token_ids=self._stop_token_ids,
                choice=choice,
                is_streamed=bool(request.stream),
            )
            for choice in choices
        ]

    def _post(self, updates: list[tuple[Sequence, Update]]) -> None:
        self._loop.call_soon_threadsafe(self._hand_out, updates)

    def _hand_out(self, updates: list[tuple[Sequence, Update]]) -> None:
        for sequence, update in updates:
            if (exchange := self._exchanges.get(sequence)) is not None:
                exchange.put(sequence, update)
