import math
import random

import evaluate
import numpy as np
import pytest
import sacrebleu
from rouge_score import rouge_scorer
from sklearn.metrics import f1_score

from mlflow_finetune_plugin.evaluation.metric_modules import PACKAGED, load_metric

TEXT_METRICS = sorted(set(PACKAGED) - {"perplexity", "preference_accuracy"})

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "under",
    "mat",
    "log",
    ".",
    ",",
    "!",
    "Über",
    "Straße",
    "猫",
    "zwölf",
]


def random_texts(seed, count=60):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(0, 12))) for _ in range(count)]


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("exact_match", ["yes", " no\n", "No", ""], ["yes", "no", "no", "maybe"], 0.5),
        (
            "accuracy",
            ["Positive.", "NEGATIVE", "card arrival", "**x**"],
            ["positive", "negative", "card_arrival", "y"],
            0.75,
        ),
        ("accuracy", ["-1", "35", "C", "1,000", "?"], ["1", "3.5", "C#", "1.000", "!"], 0.0),
        ("f1", ["a", "b", "b", "x"], ["a", "a", "b", "c"], (2 / 3 + 2 / 3 + 0) / 3),
        ("token_f1", ["The cat sat.", "", "dog"], ["a cat", "", ""], (2 / 3 + 1 + 0) / 3),
        ("rougeL", ["the cat sat", "猫"], ["The cat ran!", "猫"], (2 / 3 + 0) / 2),
        ("bleu", ["the cat sat on the mat"], ["the cat sat on the mat"], 100.0),
        ("chrf", ["abc", ""], ["abc", ""], 100.0),
        ("perplexity", [2 * math.log(2), 0.0], [2, 2], math.sqrt(2)),
        ("preference_accuracy", [0.1, -0.1, 0.0, 5.0], [0.0] * 4, 0.5),
    ],
)
def test_value_on_a_small_example(name, predictions, references, expected):
    assert load_metric(name).compute(predictions, references) == pytest.approx(expected)


def by_sacrebleu_bleu(predictions, references):
    return sacrebleu.corpus_bleu(predictions, [references]).score


def by_sacrebleu_chrf(predictions, references):
    return sacrebleu.corpus_chrf(predictions, [references]).score


def by_rouge_score(predictions, references):
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    return np.mean([scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(predictions, references, strict=True)])


@pytest.mark.parametrize(
    ("name", "reference_library"),
    [("bleu", by_sacrebleu_bleu), ("chrf", by_sacrebleu_chrf), ("rougeL", by_rouge_score)],
)
@pytest.mark.parametrize("seed", range(5))
def test_text_metric_equals_its_reference_library(name, reference_library, seed):
    references = random_texts(seed)
    half_right = [r if i % 2 else p for i, (p, r) in enumerate(zip(random_texts(seed + 100), references, strict=True))]
    metric = load_metric(name)
    for predictions in (references, half_right, random_texts(seed + 100), [""] * 60, ["cat"] * 60, ["zzz zzz"] * 60):
        assert metric.compute(predictions, references) == pytest.approx(reference_library(predictions, references))


def test_f1_over_a_hundred_labels_equals_scikit_learn():
    rng = random.Random(0)
    labels = [f"label {i}" for i in range(100)]
    references = labels + rng.choices(labels, k=900)
    predictions = [r if rng.random() < 0.6 else rng.choice([*labels, "not a label"]) for r in references]
    expected = f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
    assert load_metric("f1").compute(predictions, references) == pytest.approx(expected)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_scores_of_many_sums_equal_the_scores_of_each(name):
    metric = load_metric(name)
    references = random_texts(0)
    statistics = metric.row_statistics(random_texts(1), references)
    assert len(statistics) == len(references)
    weights = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=(2, 3)).astype(float)
    scores = metric.score(weights @ statistics)
    assert scores.shape == (2, 3)
    for index in np.ndindex(2, 3):
        assert scores[index] == pytest.approx(metric.score(weights[index] @ statistics))


@pytest.mark.parametrize("name", ["bleu", "chrf"])
def test_a_resample_scores_as_the_same_rows_repeated(name):
    metric = load_metric(name)
    predictions, references = random_texts(3), random_texts(4)
    statistics = metric.row_statistics(predictions, references)
    rows = [0, 0, 5, 7, 7, 7]
    expected = metric.compute([predictions[i] for i in rows], [references[i] for i in rows])
    assert metric.score(statistics[rows].sum(axis=0)) == pytest.approx(expected)


def test_f1_of_a_resample_averages_over_the_labels_it_holds():
    metric = load_metric("f1")
    statistics = metric.row_statistics(["a", "b"], ["a", "b"])
    assert metric.score(np.array([3.0, 0.0]) @ statistics) == 1.0


@pytest.mark.parametrize("name", PACKAGED)
def test_every_metric_says_what_it_is(name):
    metric = load_metric(name)
    assert metric.higher_is_better is (name != "perplexity")
    assert metric.is_binary is (name in ("exact_match", "accuracy", "preference_accuracy"))
    assert metric.reads_pairs is (name == "preference_accuracy")
    assert metric.reads_likelihoods is (name == "perplexity")
    assert metric.metric.info.description
    assert metric.metric.info.citation


def test_a_metric_loads_through_evaluate_as_it_is():
    path = load_metric("exact_match").metric.__class__.__module__
    assert "exact_match" in path
    from mlflow_finetune_plugin.evaluation import metric_modules

    module = evaluate.load(f"{metric_modules._FOLDER}/exact_match.py")
    assert module.compute(predictions=["a", "b"], references=["a", "c"]) == {"exact_match": 0.5}
