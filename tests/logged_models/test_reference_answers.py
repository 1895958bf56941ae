"""Greedy answers in a reference: the tokens that the model generates, their texts, and how decided each token was."""

import pytest
import torch
from peft import PeftModel
from tiny_adapters import load_model, save_adapter
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.evaluation.answer_text import decoded_answer
from mlflow_finetune_plugin.evaluation.generation import greedy_answers
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.logged_models.reference_answers import Decoding, reference_answers

CHAT = ({"role": "user", "content": "hello"},)
PROMPTS = ((1, 40, 41, 42, 9, 300), (1, 7, 8), (1, 200, 201, 202))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_adapter("lora", EMBEDDED_FOLDER, tmp_path_factory.mktemp("adapter"), seed=3)
    return PeftModel.from_pretrained(load_model(EMBEDDED_FOLDER), str(folder)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)


def rows(messages=CHAT, prompts=PROMPTS):
    return [EvalRow(messages, prompt, (11,), "", "", "", number) for number, prompt in enumerate(prompts)]


def test_answers_are_those_of_the_model_with_a_text_for_each_token(model, tokenizer):
    answers = reference_answers(model, rows(), Decoding(tokenizer, [], "", 6))
    expected = greedy_answers(model, PROMPTS, max_new_tokens=6, stop_token_ids=[], pad_token_id=0)
    assert [answer["probe"] for answer in answers] == [0, 1, 2]
    for answer, ids in zip(answers, expected, strict=True):
        assert answer["ids"] == ids
        assert answer["texts"] == [decoded_answer(tokenizer, ids[: end + 1], "") for end in range(len(ids))]


def test_margins_are_the_lead_over_the_second_best_token(model, tokenizer):
    (answer, *_) = reference_answers(model, rows(), Decoding(tokenizer, [], "", 6))
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPTS[0], *answer["ids"]]])).logits[0, len(PROMPTS[0]) - 1 : -1]
    best, second = logits.topk(2).values.unbind(-1)
    assert answer["margins"] == pytest.approx((best - second).tolist(), abs=1e-4)


def test_an_answer_ends_with_its_stop_token_which_has_no_text(model, tokenizer):
    (whole, *_) = reference_answers(model, rows(), Decoding(tokenizer, [], "", 6))
    stop = next(token for token in whole["ids"][1:] if token != whole["ids"][0])
    end = whole["ids"].index(stop)
    (ended, *_) = reference_answers(model, rows(), Decoding(tokenizer, [stop], "", 6))
    assert ended["ids"] == whole["ids"][: end + 1]
    assert ended["texts"] == [*whole["texts"][:end], whole["texts"][end - 1]]
    assert len(ended["margins"]) == end + 1


def test_only_chats_that_fit_are_answered_and_at_most_four(model, tokenizer):
    decoding = Decoding(tokenizer, [], "", 6)
    assert reference_answers(model, rows(messages=()), decoding) == []
    assert len(reference_answers(model, rows(prompts=PROMPTS * 2), decoding)) == 4
    context = model.get_base_model().config.max_position_embeddings
    assert reference_answers(model, rows(prompts=[(1, *[40] * (context - 7))]), decoding) == []
