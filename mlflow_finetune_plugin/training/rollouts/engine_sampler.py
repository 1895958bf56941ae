"""Sample completions with a serving engine, which loads the adapter of each step under a name that is never used again.

The engine holds a second copy of the base. Before a generation the adapter is written to the scratch folder of the run, loaded
under its step and digest, and the one before it is unloaded and deleted. So a completion comes from exactly the weights that
its request names, and from the code that will serve the version.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_finetune_plugin.base_models.weights_digest import folder_digest
from mlflow_finetune_plugin.errors import ServingError, TrainingError
from mlflow_finetune_plugin.methods import TrainerContext
from mlflow_finetune_plugin.serving.engines import BlockingEngine
from mlflow_finetune_plugin.serving.settings import VLLM
from mlflow_finetune_plugin.training.rollouts.engine_choice import SavedAdapter, choose_sampling_engine, engine_spec

logger = logging.getLogger(__name__)

ENGINE_FOLDER = "sampling_engine"
"""The folder in the scratch folder of a run: the engine's log, its tokenizer and the adapter that it has loaded."""
_WHAT = "sampling completions"
_LONGEST_STEP_S = 30.0
"""Seconds that one step of the engine may take, for all completions together; the limit of a generation follows from it."""
_DRAIN_S = 10.0


@dataclass(frozen=True)
class Sampling:
    """How completions are sampled, and the share of a GPU's memory for vLLM."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    gpu_memory_utilization: float


@dataclass(frozen=True)
class Sampled:
    """A completion.

    Attributes:
        ids: The sampled token ids, with the stop token.
        log_probs: The engine's log-probability of each, in nats, at temperature 1.
    """

    ids: list[int]
    log_probs: list[float]


class EngineSampler:
    """The engine of a training. It is started by the first generation, when there is an adapter whose shape is known.

    Args:
        context: The base, the adaptation, the scratch folder and the stop tokens.
        sampling: How completions are sampled.
    """

    def __init__(self, context: TrainerContext, sampling: Sampling) -> None:
        if context.base is None or context.method is None:
            raise TrainingError("sampler: engine needs the files of the base; fix: sampler: trainer")
        self._context, self._method, self._sampling = context, context.method, sampling
        self._folder = context.folder / ENGINE_FOLDER
        shutil.rmtree(self._folder, ignore_errors=True)  # of an attempt that was killed
        self._folder.mkdir(parents=True)
        self._at_once, self._longest = 1, 1
        self._engine: BlockingEngine | None = None
        self._loaded: str | None = None

    @property
    def pid(self) -> int | None:
        """The id of the engine's process; None before it is started."""
        return self._engine.pid if self._engine is not None else None

    def set_sizes(self, *, at_once: int, longest_prompt: int) -> None:
        """Set how many completions are decoded together, and how many tokens the longest prompt has."""
        self._at_once, self._longest = at_once, longest_prompt + self._sampling.max_tokens

    def sample(self, model: Any, prompts: Sequence[Sequence[int]], *, step: int, seed: int) -> list[Sampled]:
        """Return a completion of each prompt, sampled with the weights that the model has now.

        Args:
            model: The model in training.
            prompts: Token ids; a prompt is repeated for each of its completions.
            step: Optimizer steps so far, for the adapter's name.
            seed: Decides the samples; the completion at position N is drawn with ``seed + N``.

        Raises:
            TrainingError: The engine ended, sent no answer, refused the adapter or a request, or failed.
        """
        try:
            name = self._load(model, step)
            assert self._engine is not None
            bodies = self._bodies(name, prompts, seed)
            seconds = _LONGEST_STEP_S * (self._sampling.max_tokens + len(prompts))
            answers = self._engine.complete(bodies, timeout_s=seconds)
        except ServingError as error:
            raise TrainingError(f"{error}; fix: the cause in its log, or -P sampler=trainer") from error
        choices = [choice for answer in answers for choice in answer["choices"]]
        return [_sampled(choice) for choice in choices]

    def close(self, *, drain_s: float = 0.0) -> None:
        """End the engine, and delete its adapter."""
        if self._engine is not None:
            self._engine.close(drain_s=drain_s)
        for adapter in self._folder.glob("step-*"):
            shutil.rmtree(adapter)

    def _load(self, model: Any, step: int) -> str:
        """Load the weights that the model has now, unless they are loaded, and return their name."""
        draft = self._folder / "draft"
        method = self._method
        # Not the scratch folder as the start: LoRA's save removes what it finds there.
        method.adaptation.save(model, method.adaptation_options, draft, start=self._folder)
        digest = folder_digest(draft)[:12]
        if self._loaded is not None and self._loaded.endswith(digest):
            shutil.rmtree(draft)
            return self._loaded
        name = f"step-{step:06}-{digest}"
        adapter = draft.rename(self._folder / name)
        engine = self._started(adapter)
        if self._loaded is not None:
            engine.unload(self._loaded)
            shutil.rmtree(self._folder / self._loaded)
        engine.load(name, adapter)
        self._loaded = name
        return name

    def _started(self, folder: Path) -> BlockingEngine:
        if self._engine is not None:
            return self._engine
        context, method = self._context, self._method
        adapter = SavedAdapter.of(context.base, method.adaptation, method.adaptation_options, folder)
        kind, reason = choose_sampling_engine(adapter)
        spec = engine_spec(
            kind,
            context.base,
            context.renderer.tokenizer,
            adapter,
            self._folder,
            at_once=self._at_once,
            longest=self._longest,
            gpu_memory_utilization=self._sampling.gpu_memory_utilization,
        )
        self._engine = BlockingEngine(spec, self._folder, what=_WHAT)
        self._engine.start()
        context.report.stage("train", f"completions are sampled by the {kind} engine in process {self.pid}: {reason}")
        return self._engine

    def _bodies(self, model: str, prompts: Sequence[Sequence[int]], seed: int) -> list[dict[str, Any]]:
        """Return the requests. All prompts are in one where the engine gives each completion of a request its own seed.

        The Transformers engine then also decodes them in the same batches whenever they are asked for.
        """
        sampling = self._sampling
        body = {
            "model": model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            **({"top_k": sampling.top_k} if sampling.top_k else {}),
            # The stop tokens of the rendering alone end a completion, as in training, and not those of the base's files.
            "ignore_eos": True,
            "stop_token_ids": sorted(self._context.renderer.stop_token_ids),
            "return_token_ids": True,
            "logprobs": 0,
        }
        assert self._engine is not None
        if self._engine.spec.kind == VLLM:
            return [{**body, "prompt": list(ids), "seed": seed + at} for at, ids in enumerate(prompts)]
        return [{**body, "prompt": [list(ids) for ids in prompts], "seed": seed}]


@contextmanager
def engine_sampler(context: TrainerContext, sampling: Sampling) -> Iterator[EngineSampler]:
    """Yield the sampler of a training. Its engine ends with the block."""
    sampler = EngineSampler(context, sampling)
    drain_s = 0.0
    try:
        yield sampler
        drain_s = _DRAIN_S
    finally:
        sampler.close(drain_s=drain_s)


def _sampled(choice: dict[str, Any]) -> Sampled:
    ids, log_probs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if not ids or len(ids) != len(log_probs):
        raise TrainingError(f"the engine returned {len(ids)} tokens with {len(log_probs)} log-probabilities")
    return Sampled(ids, log_probs)
