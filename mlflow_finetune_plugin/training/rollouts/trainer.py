"""The trainers that learn from rewards: TRL's, with prompts as the token ids of the data room, our stop tokens and our rewards.

A mixin in front of ``trl.GRPOTrainer`` or ``trl.RLOOTrainer``. The reference of the KL penalty is the model as it was before
the first step, whichever adaptation it has: its trainable weights are kept and put in for the pass. TRL's own second adapter
(``ref``) is never made, so the saved adapter has the same tensors as one from another objective.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import Trainer, TrainerCallback
from trl.trainer.utils import RepeatSampler

from mlflow_finetune_plugin.config.sections import MAX_PRECISION_GAP
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, default_generation_config, until_stop
from mlflow_finetune_plugin.evaluation.virtual_tokens import virtual_token_ids
from mlflow_finetune_plugin.internals.trl import check_rollout_trainer, single_turn_result
from mlflow_finetune_plugin.rewards import Completion, Rewards, RewardScores
from mlflow_finetune_plugin.training.memory import is_out_of_memory
from mlflow_finetune_plugin.training.rollouts.engine_sampler import EngineSampler, Sampled
from mlflow_finetune_plugin.training.rollouts.repetition import repeated_share

ROLLOUTS_FILE = "rollouts.pt"
_COMPARED = 8
"""Completions of a generation whose log-probabilities are compared with the engine's, each of another prompt."""


@dataclass(frozen=True)
class ScoredBatch:
    """Completions with their rewards: those of one prompt are next to each other.

    Attributes:
        step: The optimizer step that is computed.
        completions: What was scored.
        scores: The reward of each.
        num_generations: Completions of each prompt.
    """

    step: int
    completions: list[Completion]
    scores: RewardScores
    num_generations: int


class Watcher(TrainerCallback):  # type: ignore[misc]
    """A callback that samples with the trainer, which sets itself."""

    trainer: RolloutTrainer


class RolloutTrainer(Trainer):  # type: ignore[misc]
    """The mixin that generates from token ids and scores with ``Rewards``.

    Args:
        rewards: Scores the completions; it has been entered.
        renderer: Stop tokens, and the text of an answer.
        watchers: Callbacks that get the trainer.
        sampler: The engine that samples; None samples with the model itself, or with vLLM in this process.
        train_dataset: Rows of the form ``prompts``.
        eval_dataset: The same for validation, or None.
        arguments: Those of TRL's trainer.
    """

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        rewards: Rewards,
        renderer: ChatRenderer,
        watchers: Sequence[Watcher] = (),
        sampler: EngineSampler | None = None,
        train_dataset: datasets.Dataset,
        eval_dataset: datasets.Dataset | None,
        **arguments: Any,
    ) -> None:
        _refuse_prompt_learning(model)
        beta, args.beta = args.beta, 0.0  # TRL would make a second adapter for the reference
        args.reward_weights = list(rewards.weights)
        # Completions end where those of the served model end. TRL's own list is that of the base's generation config.
        args.generation_kwargs = {"stop_token_ids" if args.use_vllm else "eos_token_id": list(renderer.stop_token_ids)}
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[_placeholder(name) for name in rewards.names],
            train_dataset=_as_prompts(train_dataset),
            eval_dataset=None if eval_dataset is None else _as_prompts(eval_dataset),
            **arguments,
        )
        check_rollout_trainer(self)
        if "ref" in getattr(self.model, "peft_config", {}):  # RLOO makes it whatever beta is
            self.model.delete_adapter("ref")
        args.beta = self.beta = beta
        self.ref_model = StartOfTraining(self.model) if beta else None
        self.rewards, self.renderer, self.sampler = rewards, renderer, sampler
        if sampler is not None:
            datasets_of_prompts = [rows for rows in (self.train_dataset, self.eval_dataset) if rows is not None]
            longest = max(len(ids) for rows in datasets_of_prompts for ids in rows["prompt"])
            sampler.set_sizes(at_once=self.args.generation_batch_size, longest_prompt=longest)
        self.latest: ScoredBatch | None = None
        """The batch that was scored last in training."""
        self.eos_token_ids = list(renderer.stop_token_ids)
        for watcher in watchers:
            watcher.trainer = self
            self.add_callback(watcher)

    # prompts and completions -----------------------------------------------------------------------------------------

    def _tokenize_prompts(self, prompts: list[list[int]]) -> Any:
        """Return the prompts, which are token ids already. RLOO and GRPO take the same three values."""
        return [list(ids) for ids in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """Generate without the sampling settings that the base's own generation config may have."""
        started = time.monotonic()
        if self.sampler is None:
            with default_generation_config(self.model):
                result = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        else:
            # The seed is drawn from the state that checkpoints hold, so that a resumed training samples the same.
            seed = int(torch.randint(2**62, ()))
            first = len(virtual_token_ids(self.model))
            prompt_ids = [ids[first:] for ids in prompt_ids]  # the engine puts the adapter's virtual tokens in front
            sampled = self.sampler.sample(self.model, prompt_ids, step=self.state.global_step, seed=seed)
            self._compare(prompt_ids, sampled)
            result = single_turn_result(self, [completion.ids for completion in sampled])
        self._metrics["train" if self.model.training else "eval"]["sampling/seconds"].append(time.monotonic() - started)
        return result

    def _compare(self, prompts: list[list[int]], sampled: list[Sampled]) -> None:
        """Record how far the engine's log-probabilities are from those of the model. Raises TrainingError if it has other weights."""
        checked = range(0, len(prompts), self.num_generations)[:_COMPARED]
        ids = [sampled[at].ids for at in checked]
        ours = completion_log_probs(
            self.model, [prompts[at] for at in checked], ids, pad_token_id=self.processing_class.pad_token_id
        )
        theirs = [np.asarray(sampled[at].log_probs, dtype=np.float32) for at in checked]
        gaps = np.abs(np.concatenate(ours) - np.concatenate(theirs))
        figures = self._metrics["train" if self.model.training else "eval"]
        figures["sampling/sampling_logp_difference/mean"].append(float(gaps.mean()))
        figures["sampling/sampling_logp_difference/max"].append(float(gaps.max()))
        if not gaps.mean() <= MAX_PRECISION_GAP:
            raise TrainingError(
                f"the engine does not sample from the trained model: its log-probabilities differ by {gaps.mean():.3g} nats on a "
                f"token, {MAX_PRECISION_GAP} are allowed; fix: -P sampler=trainer"
            )

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[str],
        completion_ids_list: list[list[int]],
    ) -> torch.Tensor:
        """Return the parts of the reward, (completions, parts), NaN where a part does not apply."""
        batch = [self.completion(row, ids) for row, ids in zip(inputs, completion_ids_list, strict=True)]
        scores = self.rewards.score(batch)
        mode = "train" if self.model.training else "eval"
        figures = self._metrics[mode]
        figures["rewards_skipped"].append(float(scores.skipped))
        figures["repeated_text"].append(sum(repeated_share(completion.text) for completion in batch) / len(batch))
        if mode == "train":
            self.latest = ScoredBatch(self.state.global_step + 1, batch, scores, self.num_generations)
        columns = [scores.parts[name] for name in self.rewards.names]
        values = [[float("nan") if value is None else value for value in column] for column in columns]
        return torch.tensor(values, dtype=torch.float32, device=self.accelerator.device).T.contiguous()

    def completion(self, row: dict[str, Any], ids: Sequence[int]) -> Completion:
        """Return a completion of a row as the rewards read it: the text is that of the proof's answers."""
        text = self.renderer.answer_text(until_stop(list(ids), self.eos_token_ids))
        return Completion(json.loads(row["messages"]), text, json.loads(row["fields"] or "{}"), row["row"])

    def sample(self, rows: Sequence[dict[str, Any]], *, generations: int | None = None) -> list[Completion]:
        """Return completions of each row, as training would sample them. Random states stay as they are.

        Args:
            rows: Rows of the form ``prompts``.
            generations: Completions of each; None means ``num_generations``.
        """
        # TRL's colocated vLLM reads each ``num_generations`` prompts as one.
        sampled = self.num_generations if generations is None or self.args.use_vllm else generations
        repeated = [row for row in rows for _ in range(sampled)]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                torch.manual_seed(self.args.seed)
                ids = self._generate([row["prompt"] for row in repeated])[1]
        finally:
            self.model.train(was_training)
            self._metrics["eval"].clear()
        completions = [self.completion(row, tokens) for row, tokens in zip(repeated, ids, strict=True)]
        first = sampled if generations is None else generations
        return [completion for at, completion in enumerate(completions) if at % sampled < first]

    # steps -----------------------------------------------------------------------------------------------------------

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute a micro-step. TRL cannot divide one further when memory is short."""
        try:
            return super().training_step(*args, **kwargs)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size, times = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
            raise TrainingError(
                f"memory ran out with {size} completions in a pass; a training with rewards cannot divide a pass by itself; "
                f"fix: -P per_device_train_batch_size={max(1, size // 2)} -P gradient_accumulation_steps={times * 2} (the same "
                "step in smaller parts), or a smaller max_completion_length"
            ) from error

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        """Return TRL's order of prompts. The order of a pass depends on its number, so that a resumed training finds it again."""
        return _PassSampler(super()._get_train_sampler(dataset), self._passes_done, self.args.seed)

    def _passes_done(self) -> int:
        prompts_at_once = self.args.generation_batch_size // self.num_generations
        batches = len(self.train_dataset) // prompts_at_once * self.num_iterations * self.args.steps_per_generation
        return int(self.state.global_step // max(1, batches // self.args.gradient_accumulation_steps))

    # checkpoints -----------------------------------------------------------------------------------------------------

    def write_state(self, folder: Path) -> None:
        """Write what TRL does not save: the micro-step, and the completions that further updates will use."""
        state = {"step": self._step, "buffered_inputs": None if self._is_between_rollouts() else self._buffered_inputs}
        torch.save(state, folder / ROLLOUTS_FILE)

    def read_state(self, folder: Path) -> None:
        """Restore what ``write_state`` wrote."""
        state = torch.load(folder / ROLLOUTS_FILE, weights_only=True, map_location=self.accelerator.device)
        self._step, self._buffered_inputs = int(state["step"]), state["buffered_inputs"]

    def _is_between_rollouts(self) -> bool:
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0


class StartOfTraining:
    """The model with the trainable weights that it had when this was made: the reference of a KL penalty."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self._start = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    def __call__(self, **inputs: Any) -> Any:
        with self._at_start():
            return self.model(**inputs)

    @contextmanager
    def _at_start(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self._start:
                parameter.data, self._start[name] = self._start[name], parameter.data


class _PassSampler(RepeatSampler):  # type: ignore[misc]
    """TRL's sampler with an order that depends on the seed and the number of the pass only."""

    def __init__(self, sampler: RepeatSampler, passes_done: Any, seed: int) -> None:
        self.__dict__.update(vars(sampler))
        self._passes_done, self._seed = passes_done, seed

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._passes_done())
        return super().__iter__()


def rollout_trainer(trainer_class: type) -> type:
    """Return a subclass of one of TRL's trainers that generates from our prompts and scores with our rewards."""
    return type(trainer_class.__name__, (RolloutTrainer, trainer_class), {})


def _as_prompts(rows: datasets.Dataset) -> datasets.Dataset:
    """Return the rows in TRL's form: ``prompt`` holds token ids, and ``row`` the number for messages."""
    kept = rows.select_columns(["input_ids", "messages", "fields"]).rename_column("input_ids", "prompt")
    return kept.add_column("row", list(range(len(kept))))


def _placeholder(name: str) -> Any:
    def score(**columns: Any) -> list[float]:
        raise NotImplementedError("RolloutTrainer scores all parts at once")

    score.__name__ = name
    return score


def _refuse_prompt_learning(model: Any) -> None:
    config = getattr(model, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        raise TrainingError(
            f"{config.peft_type.value.lower()} cannot be trained with rewards: prompts of different lengths are padded on the "
            "left while completions are sampled, and PEFT gives the padding positions; fix: -P adaptation=lora"
        )
