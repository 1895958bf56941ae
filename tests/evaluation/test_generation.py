import logging
import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tiny_adapters import load_model
from tiny_bases import tiny_base

from mlflow_finetune_plugin.errors import FinetuneError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, greedy_answers


def prompts_of_mixed_length(count=12, longest=20):
    rng = random.Random(0)
    return [[rng.randrange(3, 97) for _ in range(rng.randint(1, longest))] for _ in range(count)]


def greedy_by_hand(model, prompt, max_new_tokens, stop_token_ids=()):
    """Score one row by definition, without cache, batch and padding."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        token = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if token in stop_token_ids:
            break
        ids.append(token)
    return ids[len(prompt) :]


def log_probs_by_hand(model, prompt, completion):
    log_probs = model(torch.tensor([[*prompt, *completion]])).logits[0].log_softmax(-1)
    return [float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 60, 16384])
def test_batched_answers_equal_one_by_one(model, batch_tokens):
    prompts = prompts_of_mixed_length()
    expected = [greedy_by_hand(model, prompt, 8) for prompt in prompts]
    answers = greedy_answers(
        model, prompts, max_new_tokens=8, stop_token_ids=[], pad_token_id=0, batch_tokens=batch_tokens
    )
    assert answers == expected


@torch.no_grad()
def test_answer_ends_before_the_first_stop_token(model):
    prompts = prompts_of_mixed_length()
    unstopped = [greedy_by_hand(model, prompt, 8) for prompt in prompts]
    stops = {unstopped[0][3], unstopped[1][0]}
    answers = greedy_answers(model, prompts, max_new_tokens=8, stop_token_ids=stops, pad_token_id=0)
    assert answers == [greedy_by_hand(model, prompt, 8, stops) for prompt in prompts]
    assert answers[1] == []


@torch.no_grad()
def test_own_generation_config_neither_applies_nor_is_lost(model, recwarn):
    prompts = prompts_of_mixed_length()
    expected = [greedy_by_hand(model, prompt, 8) for prompt in prompts]
    model_config = model.generation_config
    model_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=9.0, eos_token_id=expected[0][0], max_length=5
    )
    assert greedy_answers(model, prompts, max_new_tokens=8, stop_token_ids=[], pad_token_id=0) == expected
    assert model.generation_config is model_config
    assert not [warning for warning in recwarn if "generation" in str(warning.message)]


@torch.no_grad()
def test_answer_ends_where_the_context_ends_and_a_warning_says_so(llama, caplog):
    prompts = [[5] * 60, [6] * 10, [7] * 62, [8] * 60, [9] * 63]  # context 64
    with caplog.at_level(logging.WARNING):
        answers = greedy_answers(llama, prompts, max_new_tokens=6, stop_token_ids=[], pad_token_id=0)
    assert [len(answer) for answer in answers] == [4, 6, 2, 4, 1]
    assert answers == [greedy_by_hand(llama, p, min(6, 64 - len(p))) for p in prompts]
    assert (
        "4 of 5 prompts leave room for fewer than max_new_tokens=6 in the model's context of 64 (the longest leaves 1)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("prompts", "max_new_tokens", "message"),
    [
        ([[5], [5] * 64], 4, "row 1: a prompt of 64 tokens leaves no room for an answer in the model's context of 64"),
        ([[5], []], 4, "row 1 has an empty prompt"),
        ([[5]], 0, "max_new_tokens is 0"),
    ],
)
def test_impossible_request_is_refused_before_generating(llama, prompts, max_new_tokens, message):
    with pytest.raises(FinetuneError, match=message):
        greedy_answers(llama, prompts, max_new_tokens=max_new_tokens, stop_token_ids=[], pad_token_id=0)


def test_progress_counts_answered_rows(llama):
    calls = []
    prompts = [[5] * 4, [6] * 4, [7] * 4]
    greedy_answers(
        llama,
        prompts,
        max_new_tokens=4,
        stop_token_ids=[],
        pad_token_id=0,
        batch_tokens=16,
        on_progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(2, 3), (3, 3)]


@torch.no_grad()
@pytest.mark.parametrize("batch_tokens", [1, 60, 16384])
def test_batched_log_probs_equal_one_by_one(model, batch_tokens):
    prompts = prompts_of_mixed_length()
    completions = list(reversed(prompts_of_mixed_length(longest=12)))
    completions[4] = []
    results = completion_log_probs(model, prompts, completions, pad_token_id=0, batch_tokens=batch_tokens)
    for prompt, completion, result in zip(prompts, completions, results, strict=True):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, log_probs_by_hand(model, prompt, completion), atol=2e-5)


@torch.no_grad()
def test_log_probs_compute_no_logits_for_prompts(llama):
    shapes = []
    llama.lm_head.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    completion_log_probs(llama, [[5] * 40, [6] * 38], [[7] * 3, [8] * 5], pad_token_id=0)
    assert shapes == [(2, 6, 97)]  # the five completion tokens of the shorter prompt, and the last column


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "prompt_tuning", "prefix_tuning"],
)
def test_adapted_model_equals_one_by_one(llama, config):
    model = get_peft_model(llama, config).eval()
    prompts = prompts_of_mixed_length()
    assert greedy_answers(model, prompts, max_new_tokens=5, stop_token_ids=[], pad_token_id=0) == [
        greedy_by_hand(model, prompt, 5) for prompt in prompts
    ]
    # logits of virtual tokens come first, so that the last columns are the row's own
    results = completion_log_probs(model, prompts, prompts, pad_token_id=0)
    for prompt, result in zip(prompts, results, strict=True):
        log_probs = model(torch.tensor([prompt * 2])).logits[0, -len(prompt) - 1 :].log_softmax(-1)
        np.testing.assert_allclose(result, log_probs[:-1][range(len(prompt)), prompt], atol=2e-5)


def test_row_beyond_the_context_is_refused(llama):
    with pytest.raises(
        FinetuneError, match="row 0 has 60 prompt and 5 completion tokens, more than the model's context of 64"
    ):
        completion_log_probs(llama, [[5] * 60], [[5] * 5], pad_token_id=0)


def test_log_probs_need_a_token_to_start_from(llama):
    with pytest.raises(FinetuneError, match="row 0 has an empty prompt"):
        completion_log_probs(llama, [[]], [[5]], pad_token_id=0)


@torch.no_grad()
def test_a_mixture_answers_while_its_routers_have_the_loss_of_training(tmp_path):
    """TRL leaves it on, and with keys in a cache Transformers cannot compute it."""
    model = load_model(tiny_base(tmp_path, "mixtral"))
    prompts = [[5, 6, 7], [8, 9]]
    expected = [greedy_by_hand(model, prompt, 4) for prompt in prompts]
    model.config.output_router_logits = True
    assert greedy_answers(model, prompts, max_new_tokens=4, stop_token_ids=[], pad_token_id=0) == expected
    assert model.config.output_router_logits is True
