import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from mlflow_finetune_plugin.errors import ConfigError, DataError, FinetuneError
from mlflow_finetune_plugin.evaluation.forgetting import text_nats
from mlflow_finetune_plugin.evaluation.generation import greedy_answers
from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED
from mlflow_finetune_plugin.evaluation.proof import gain_over, measure, prove
from mlflow_finetune_plugin.evaluation.results import EvalRow

OF_ANSWERS = [name for name in PACKAGED if name != "preference_accuracy"]

STOP = 1
WORDS = ["<pad>", "</s>", "<s>", *(f"w{i}" for i in range(94))]
QUESTIONS = ["w1 w2 w3", "w4", "w5 w6", "w7 w8 w9 w10", "w11 w12", "w13"]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", bos_token="<s>")


def row(tokenizer, question, answer, line):
    return EvalRow(
        messages=({"role": "system", "content": "s"}, {"role": "user", "content": question}),
        prompt_ids=(2, *tokenizer.encode(question, add_special_tokens=False)),
        completion_ids=(*tokenizer.encode(answer, add_special_tokens=False), STOP),
        reference=answer,
        task="copy",
        source="eval.jsonl",
        line=line,
    )


@pytest.fixture(scope="module")
def rows(tokenizer):
    return [row(tokenizer, question, f"w{20 + i}", i) for i, question in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def adapted(build_llama, rows):
    """A LoRA that has learnt to answer each question with its reference, on a base that has not."""
    torch.manual_seed(0)
    model = get_peft_model(build_llama(), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=2e-2)
    ids = [torch.tensor([*row.prompt_ids, *row.completion_ids]) for row in rows]
    labels = [torch.tensor([-100] * len(row.prompt_ids) + [*row.completion_ids]) for row in rows]
    for _ in range(60):
        loss = model(
            pad_sequence(ids, batch_first=True), labels=pad_sequence(labels, batch_first=True, padding_value=-100)
        ).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def prove_on(model, tokenizer, rows, **changes):
    arguments = {"metrics": ["exact_match"], "max_new_tokens": 4, "stop_token_ids": [STOP], "forgetting_texts": []}
    return prove(model, tokenizer, rows, **{**arguments, **changes})


def test_adapter_that_learnt_the_answers_is_proven_better(adapted, tokenizer, rows):
    report = prove_on(adapted, tokenizer, rows, metrics=OF_ANSWERS)
    results = {result.name: result for result in report.metrics}
    assert (results["exact_match"].base, results["exact_match"].adapter) == (0.0, 1.0)
    assert results["exact_match"].gain.low > 0
    assert results["exact_match"].gain.method == "Tango 1998 score"
    assert results["perplexity"].gain.value == results["perplexity"].base - results["perplexity"].adapter > 0
    assert all(result.rows == 6 for result in report.metrics)
    assert report.forgetting is None
    json.dumps(report.rows)


def test_lengths_are_the_mean_tokens_of_the_generated_answers(adapted, build_llama, tokenizer, rows):
    report = prove_on(adapted, tokenizer, rows)
    prompts = [row.prompt_ids for row in rows]
    bare = build_llama().eval()
    answers = greedy_answers(bare, prompts, max_new_tokens=4, stop_token_ids=[STOP], pad_token_id=0)
    assert report.lengths.adapter == 1.0
    assert report.lengths.base == sum(map(len, answers)) / 6 > 1


def test_forgetting_is_the_growth_in_nats_per_token(adapted, build_llama, tokenizer, rows):
    texts = ["w30 w31 w32", "w33 w34", "w35 w36 w37 w38"]
    report = prove_on(adapted, tokenizer, rows, forgetting_texts=texts)
    forgetting = report.forgetting
    base, adapter = (text_nats(model, tokenizer, texts, max_length=64) for model in (build_llama().eval(), adapted))
    assert base[:, 1].tolist() == [3, 2, 4]
    assert forgetting.value == pytest.approx((adapter[:, 0].sum() - base[:, 0].sum()) / 9, abs=1e-5)
    for text, (base_nats, tokens), (adapter_nats, _) in zip(report.texts, base, adapter, strict=True):
        assert (text.base, text.adapter) == pytest.approx((base_nats, adapter_nats), abs=1e-4)
        assert text.tokens == tokens


def test_every_row_is_on_record(adapted, tokenizer, rows):
    report = prove_on(adapted, tokenizer, rows, metrics=["exact_match", "perplexity", "bleu", "token_f1"])
    record = report.rows[3]
    assert {key: record[key] for key in ("task", "source", "line", "prompt", "reference", "adapter_answer")} == {
        "task": "copy",
        "source": "eval.jsonl",
        "line": 3,
        "prompt": "w7 w8 w9 w10",
        "reference": "w23",
        "adapter_answer": "w23",
    }
    assert (record["base_exact_match"], record["adapter_exact_match"], record["adapter_token_f1"]) == (0.0, 1.0, 1.0)
    assert record["base_nats_per_token"] > record["adapter_nats_per_token"] > 0
    assert "base_bleu" not in record  # a corpus score has no rows
    mean_nats = sum(r["adapter_nats_per_token"] for r in report.rows) / 6  # all rows have two tokens
    assert report.metrics[1].adapter == pytest.approx(math.exp(mean_nats))


def test_base_side_is_the_model_without_its_adapter(adapted, build_llama, tokenizer, rows):
    report = prove_on(adapted, tokenizer, rows)
    bare = build_llama()
    for record, example in zip(report.rows, rows, strict=True):
        ids = torch.tensor([example.prompt_ids])
        with torch.no_grad():
            first = int(bare(ids).logits[0, -1].argmax())
        assert record["base_answer"].split()[:1] == tokenizer.decode([first], skip_special_tokens=True).split()


def test_fresh_adapter_gains_and_forgets_nothing(llama, tokenizer, rows):
    model = get_peft_model(llama, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    report = prove_on(model, tokenizer, rows, metrics=OF_ANSWERS, forgetting_texts=["w30 w31", "w32 w33"])
    assert all(result.gain.value == 0 for result in report.metrics)
    assert report.forgetting.value == 0
    assert not model.training


def test_users_metric_is_bootstrapped_by_recomputing(adapted, tokenizer, rows, tmp_path):
    path = tmp_path / "long_answers.py"
    path.write_text(
        "import datasets\n"
        "import evaluate\n"
        "class LongAnswers(evaluate.Metric):\n"
        "    higher_is_better = False\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'long_answers': sum(len(p.split()) for p in predictions) / len(predictions)}\n"
    )
    [result] = prove_on(adapted, tokenizer, rows, metrics=[str(path)]).metrics
    assert result.name == "long_answers"
    assert result.adapter == 1.0
    assert result.gain.value == pytest.approx(result.base - 1.0)
    assert result.gain.low <= result.gain.value <= result.gain.high
    assert result.gain.method.startswith("expanded percentile bootstrap, recomputed, 500 resamples")


def test_progress_names_the_side(adapted, tokenizer, rows):
    calls = []
    prove_on(adapted, tokenizer, rows, on_progress=lambda *step: calls.append(step))
    assert calls == [("base", 6, 6), ("adapter", 6, 6)]


def test_faults_show_before_anything_is_generated(adapted, tokenizer, rows, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("generated")

    monkeypatch.setattr(adapted, "generate", refuse)
    with pytest.raises(DataError, match="no held-out rows"):
        prove_on(adapted, tokenizer, [])
    with pytest.raises(FinetuneError, match=r"'belu' is not a known metric .did you mean 'bleu'"):
        prove_on(adapted, tokenizer, rows, metrics=["belu"])
    with pytest.raises(ConfigError, match="metric 'bleu' is listed twice"):
        prove_on(adapted, tokenizer, rows, metrics=["bleu", "bleu"])


def test_the_gain_over_another_adapter_compares_pairs_too(adapted, tokenizer, rows):
    pairs = [replace(row, rejected="w90", rejected_ids=(93, STOP)) for row in rows]
    settings = {"max_new_tokens": 3, "stop_token_ids": [STOP]}
    proof = prove(adapted, tokenizer, pairs, metrics=["preference_accuracy"], forgetting_texts=(), **settings)
    with adapted.disable_adapter():
        base = measure(adapted, tokenizer, pairs, answer_prefix="", **settings)
    (gain,) = gain_over(proof, pairs, base, metrics=["preference_accuracy"], seed=0)
    assert (gain.base, gain.adapter, gain.gain.value) == (
        proof.metrics[0].base,
        proof.metrics[0].adapter,
        proof.metrics[0].gain.value,
    )
    assert gain.adapter == 1


def test_pairs_are_proven_by_the_likelihood_of_both_answers(adapted, tokenizer, rows):
    pairs = [
        replace(row, rejected="worse", rejected_ids=other.completion_ids)
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    report = prove_on(adapted, tokenizer, pairs, metrics=["exact_match", "preference_accuracy"])
    accuracy = report.metrics[1]
    for side, value in (("base", accuracy.base), ("adapter", accuracy.adapter)):
        right = [
            record[f"{side}_nats_per_token"] * len(pair.completion_ids)
            < record[f"{side}_rejected_nats_per_token"] * len(pair.rejected_ids)
            for record, pair in zip(report.rows, pairs, strict=True)
        ]
        assert value == pytest.approx(np.mean(right))
        assert [record[f"{side}_preference_accuracy"] for record in report.rows] == [float(hit) for hit in right]


def test_a_metric_of_pairs_is_refused_for_other_rows_before_any_answer(adapted, tokenizer, rows):
    with pytest.raises(DataError, match="preference_accuracy compares a better with a worse answer"):
        prove_on(adapted, tokenizer, rows, metrics=["preference_accuracy"])
