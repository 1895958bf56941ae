from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from mlflow_finetune_plugin.serving.transformers_engine.sampling import (
    SamplingParams,
    choose,
    make_generator,
    token_logprobs,
)

# probabilities 0.5, 0.3, 0.15, 0.05
LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


def draws(logits: torch.Tensor = LOGITS, *, answer: tuple[int, ...] = (), **settings: Any) -> Counter[int]:
    generator = make_generator(1, 0, torch.device("cpu"))
    sampling = SamplingParams(max_tokens=1, **settings)
    return Counter(choose(logits, sampling, generator, prompt=[3], answer=list(answer)) for _ in range(2000))


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.8}, {0, 1}),  # 0.5 alone is not 0.8; 0.5 + 0.3 is
        ({"top_p": 0.81}, {0, 1, 2}),
        ({"top_p": 0.01}, {0}),
        ({"min_p": 0.25}, {0, 1, 2}),  # a quarter of 0.5 is 0.125
        ({"min_p": 0.5}, {0, 1}),
        ({"temperature": 0.0}, {0}),
        ({"top_k": 3, "top_p": 0.9}, {0, 1, 2}),  # of the three left, 0.5 + 0.3 make 0.84
    ],
)
def test_what_can_be_drawn(settings: dict[str, float], possible: set[int]) -> None:
    assert set(draws(**settings)) == possible


def test_draws_follow_the_probabilities_at_the_temperature() -> None:
    assert draws()[0] / 2000 == pytest.approx(0.5, abs=0.04)
    assert draws(temperature=0.5)[0] / 2000 == pytest.approx(0.25 / 0.365, abs=0.04)


def test_penalties_weigh_what_was_said() -> None:
    greedy = {"temperature": 0.0}
    assert set(draws(answer=(0,), presence_penalty=0.6, **greedy)) == {1}  # ln(0.5/0.3) is 0.51
    assert set(draws(answer=(0,), presence_penalty=0.4, **greedy)) == {0}
    assert set(draws(answer=(0, 0), frequency_penalty=0.3, **greedy)) == {1}
    assert set(draws(answer=(0,), frequency_penalty=0.3, **greedy)) == {0}
    assert set(draws(answer=(0,), repetition_penalty=2.0, **greedy)) == {1}  # ln 0.5 * 2 is below ln 0.3
    positive = torch.tensor([1.0, 0.9, 0.8, 1.9])
    assert set(draws(positive, repetition_penalty=2.0, **greedy)) == {0}  # 3 stands in the prompt: 1.9 / 2


def test_a_seed_gives_the_same_draws_and_each_choice_its_own() -> None:
    def some(seed: int | None, choice: int) -> list[int]:
        generator = make_generator(seed, choice, torch.device("cpu"))
        return [choose(LOGITS, SamplingParams(max_tokens=1), generator, prompt=[], answer=[]) for _ in range(50)]

    assert some(5, 0) == some(5, 0)
    assert some(5, 0) != some(5, 1)
    assert some(None, 0) != some(None, 0)


def test_logprobs_tell_the_token_its_rank_and_the_likeliest() -> None:
    (told,) = token_logprobs(LOGITS[None] + 3, [2], top=2)
    assert [(token.token_id, token.rank) for token in told] == [(2, 3), (0, 1), (1, 2)]
    assert [token.logprob for token in told] == pytest.approx(torch.tensor([0.15, 0.5, 0.3]).log().tolist(), abs=1e-6)
