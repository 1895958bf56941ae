from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_process import EMBEDDED
from tiny_adapters import load_model
from tiny_bases import FAMILIES, tiny_base
from transformers import AutoTokenizer

from mlflow_finetune_plugin.evaluation.generation import greedy_answers
from mlflow_finetune_plugin.serving.transformers_engine import sequences
from mlflow_finetune_plugin.serving.transformers_engine.sampling import SamplingParams
from mlflow_finetune_plugin.serving.transformers_engine.scheduler import Scheduler
from mlflow_finetune_plugin.serving.transformers_engine.sequences import Sequence, Update
from mlflow_finetune_plugin.serving.transformers_engine.trees import Base, Tree

POISON = 77
"""A token whose embedding the tests below make the model fail on."""
TOKENS = 17
"""Tokens of an answer that is longer than the sliding window of the tiny bases, 16, whatever its prompt."""


class Decoding:
    """A scheduler and what it told."""

    def __init__(self, tree: Tree, tokenizer: Any, *, max_sequences: int = 8) -> None:
        self._tokenizer = tokenizer
        self.tree = tree
        self.told: queue.Queue[tuple[Sequence, Update]] = queue.Queue()
        self.scheduler = Scheduler(max_sequences=max_sequences, probe=tree, post=self._post)

    def sequence(self, prompt: list[int], **sampling: Any) -> Sequence:
        settings = SamplingParams(**{"max_tokens": 12, "temperature": 0.0, **sampling})
        stops = frozenset((self._tokenizer.eos_token_id,))
        return Sequence(self.tree, prompt, settings, tokenizer=self._tokenizer, stop_token_ids=stops, is_streamed=False)

    def last_words(self, sequences: list[Sequence]) -> list[Update]:
        """The whole answers of sequences that were submitted."""
        words: dict[Sequence, Update] = {}
        while len(words) < len(sequences):
            sequence, update = self.told.get(timeout=30)
            words[sequence] = update
        return [words[sequence] for sequence in sequences]

    def _post(self, updates: list[tuple[Sequence, Update]]) -> None:
        for pair in updates:
            self.told.put(pair)


@contextmanager
def decoding(tree: Tree, tokenizer: Any, **settings: Any) -> Iterator[Decoding]:
    running = Decoding(tree, tokenizer, **settings)
    running.scheduler.start()
    try:
        yield running
    finally:
        running.scheduler.close()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture
def tree() -> Tree:
    return Base(load_model(EMBEDDED)).tree


def without_stop(update: Update, stop: int) -> list[int]:
    return [token for token in update.token_ids if token != stop]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_any_architecture_decoded_together_say_what_generate_says(family: str, tmp_path: Path) -> None:
    folder = tiny_base(tmp_path, family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load_model(folder)
    texts = ["my parcel", "the quick brown fox jumps over the lazy dog and the kettle", "a", "delivery of returns"]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    expected = [  # one by one: padding is what is being tested
        greedy_answers(model, [prompt], max_new_tokens=TOKENS, stop_token_ids=[tokenizer.eos_token_id], pad_token_id=0)[
            0
        ]
        for prompt in prompts
    ]
    with decoding(Base(model).tree, tokenizer) as running:
        sequences = [running.sequence(prompt, max_tokens=TOKENS) for prompt in prompts]
        running.scheduler.submit(sequences)
        answers = [without_stop(update, tokenizer.eos_token_id) for update in running.last_words(sequences)]
    assert answers == expected


def test_prompt_logprobs_of_a_prompt_read_in_parts(tree: Tree, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [40, 80, 522, 317, 5, 6, 7]

    def told(running: Decoding) -> list[Any]:
        running.scheduler.submit([sequence := running.sequence(prompt, prompt_logprobs=1, max_tokens=3)])
        (update,) = running.last_words([sequence])
        places = update.prompt_logprobs or []
        return [[], *([token.logprob for token in place] for place in places[1:]), update.token_ids]

    with decoding(tree, tokenizer) as running:
        whole = told(running)
        monkeypatch.setattr(sequences, "_LOGITS_AT_ONCE", 3 * 1024)  # three rows of the vocabulary
        in_parts = told(running)
    assert len(whole) == len(prompt) + 1
    for part, expected in zip(in_parts, whole, strict=True):
        assert part == pytest.approx(expected, abs=1e-4)


def test_those_beyond_the_limit_wait_in_order(tree: Tree, tokenizer: Any) -> None:
    with decoding(tree, tokenizer, max_sequences=1) as running:
        sequences = [running.sequence([40 + i], max_tokens=5, ignore_eos=True) for i in range(4)]
        running.scheduler.submit(sequences)
        ended = [running.told.get(timeout=30)[0] for _ in sequences]
    assert ended == sequences


def test_a_new_prompt_is_read_while_a_long_answer_is_made(tree: Tree, tokenizer: Any) -> None:
    with decoding(tree, tokenizer) as running:
        long, short = running.sequence([40], max_tokens=400, ignore_eos=True), running.sequence([41], max_tokens=3)
        running.scheduler.submit([long])
        running.scheduler.submit([short])
        assert running.told.get(timeout=30)[0] is short
        assert len(long.answer) < 400


def test_seeded_sampling_does_not_hang_on_what_else_runs(tree: Tree, tokenizer: Any) -> None:
    def seeded(running: Decoding, **more: Any) -> Sequence:
        return running.sequence([40, 50, 60], temperature=1.0, seed=7, max_tokens=40, ignore_eos=True, **more)

    with decoding(tree, tokenizer) as running:
        running.scheduler.submit([alone := seeded(running)])
        running.last_words([alone])
        others = [
            running.sequence([70 + i] * (i + 1), temperature=1.5, max_tokens=60, ignore_eos=True) for i in range(5)
        ]
        sequences = [*others[:3], accompanied := seeded(running), *others[3:]]
        running.scheduler.submit(sequences)
        running.last_words(sequences)
    assert accompanied.answer == alone.answer
    assert len(set(alone.answer)) > 5


def test_cancelled_sequences_end_and_make_room(tree: Tree, tokenizer: Any) -> None:
    with decoding(tree, tokenizer, max_sequences=1) as running:
        running.scheduler.submit([endless := running.sequence([40], max_tokens=10**6, ignore_eos=True)])
        running.scheduler.submit([waiting := running.sequence([41]), last := running.sequence([42])])
        wait_until(lambda: len(endless.answer) > 5)
        running.scheduler.cancel([endless, waiting])
        assert running.last_words([last])[0].finish_reason is not None
        assert running.told.empty()
        assert waiting.answer == []
        assert running.scheduler.unfinished == 0


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def fail_on_poison(tree: Tree, error: BaseException) -> None:
    def check(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if bool((inputs[0] == POISON).any()):
            raise error

    tree.model.get_input_embeddings().register_forward_pre_hook(check)


def test_a_failing_prompt_ends_alone_and_the_rest_goes_on(tree: Tree, tokenizer: Any) -> None:
    fail_on_poison(tree, RuntimeError("no room for this"))
    with decoding(tree, tokenizer) as running:
        good, bad = running.sequence([40], max_tokens=50, ignore_eos=True), running.sequence([POISON])
        running.scheduler.submit([good, bad])
        answers = running.last_words([good, bad])
        assert answers[0].error is None
        assert len(answers[0].token_ids) == 50
        assert "no room for this" in str(answers[1].error)
        assert running.scheduler.broken is None


def test_a_failing_step_ends_its_rows_and_the_loop_lives_on(tree: Tree, tokenizer: Any) -> None:
    with decoding(tree, tokenizer) as running:
        sequences = [running.sequence([40 + i], max_tokens=10**6, ignore_eos=True) for i in range(3)]
        hook = tree.model.get_output_embeddings().register_forward_pre_hook(_fail_on_three_rows)
        running.scheduler.submit(sequences)
        assert all("three rows" in str(update.error) for update in running.last_words(sequences))
        hook.remove()
        running.scheduler.submit([after := running.sequence([40])])
        assert running.last_words([after])[0].error is None


def _fail_on_three_rows(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    if inputs[0].shape[0] == 3:
        raise RuntimeError("three rows")


@pytest.mark.parametrize("lost", ["thread", "device"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_broken_loop_says_so_and_leaves_nobody_waiting(lost: str, tree: Tree, tokenizer: Any) -> None:
    dead = threading.Event()
    if lost == "thread":
        fail_on_poison(tree, SystemExit("gone"))
    else:  # after the first fault nothing can be computed any more, as on a GPU that is lost
        tree.model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: _lose(dead, inputs[0]))
    with decoding(tree, tokenizer, max_sequences=2) as running:
        good = [running.sequence([40], max_tokens=10**6, ignore_eos=True) for _ in range(2)]
        sequences = [good[0], running.sequence([POISON]), good[1]]
        running.scheduler.submit(sequences)
        answers = running.last_words(sequences)
        assert all("the decode loop broke" in str(update.error) for update in answers)
        assert "restart the engine" in str(running.scheduler.broken)
        with pytest.raises(RuntimeError, match="the decode loop broke"):
            running.scheduler.submit([running.sequence([40])])


def _lose(dead: threading.Event, ids: torch.Tensor) -> None:
    if bool((ids == POISON).any()):
        dead.set()
    if dead.is_set():
        raise RuntimeError("device lost")


@pytest.mark.parametrize("good_steps", [0, 3])
def test_nan_ends_an_answer_with_an_error(good_steps: int, tree: Tree, tokenizer: Any) -> None:
    steps = iter(range(good_steps))

    def spoil(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output if next(steps, None) is not None else output * float("nan")

    tree.model.get_output_embeddings().register_forward_hook(spoil)
    with decoding(tree, tokenizer) as running:
        running.scheduler.submit([sequence := running.sequence([40], ignore_eos=True)])
        assert "NaN" in str(running.last_words([sequence])[0].error)
    assert len(sequence.answer) == good_steps


def test_equal_prompts_are_read_once_and_answered_as_if_alone(tree, tokenizer, monkeypatch):
    prompts = [[5, 6, 7], [5, 6, 7], [5, 6, 7], [8, 9], [8, 9]]
    reads = []
    start = Tree.start
    monkeypatch.setattr(Tree, "start", lambda self, ids, **more: reads.append(ids) or start(self, ids, **more))
    sampled = {"temperature": 1.0, "max_tokens": 8}

    def submitted(running, numbers):
        sequences = [running.sequence(prompts[number], seed=number, **sampled) for number in numbers]
        running.scheduler.submit(sequences)
        return [update.token_ids for update in running.last_words(sequences)]

    with decoding(tree, tokenizer) as running:
        together = submitted(running, range(len(prompts)))
        assert reads == [[5, 6, 7], [8, 9]]
        alone = [submitted(running, [number])[0] for number in range(len(prompts))]
    assert together == alone
    assert len(set(map(tuple, together))) == len(prompts)
