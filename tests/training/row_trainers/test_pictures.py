"""Rows with pictures: the same loss and gradient however a step is divided, and the same as a plain loop's."""

from __future__ import annotations

import datasets
import pytest
import torch
from peft import get_peft_model_state_dict
from seeing_bases import SEEING_FAMILIES, drawn, seeing_base
from torch.nn import functional
from training.trained import logged, run

from mlflow_finetune_plugin.adaptations import lora
from mlflow_finetune_plugin.base_models.loading import describe, find_base_model, load_base_model, load_picture_inputs
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.images import PictureStore

pytestmark = pytest.mark.train

QUESTIONS = (
    ("\ufffcWhat is it?", [0], "red"),
    ("Say hello", [], "hello to you"),
    ("\ufffcand\ufffc", [1, 2], "a blue and a green one"),
    ("\ufffc", [3], "no"),
)


@pytest.fixture(scope="module", params=SEEING_FAMILIES)
def stage(request, tmp_path_factory):
    """A base that sees, its renderer, and rows with none, one and two pictures."""
    folder = seeing_base(tmp_path_factory.mktemp(request.param), request.param)
    base = find_base_model(BaseModelSettings(name=str(folder)), {})
    inputs = load_picture_inputs(base)
    renderer = ChatRenderer(inputs.processor.tokenizer, weights=folder, pictures=inputs)
    renderer.picture_store = PictureStore(tmp_path_factory.mktemp("pictures"))
    names = [renderer.picture_store.add(drawn(seed)) for seed in range(4)]
    rows = []
    for text, shown, answer in QUESTIONS:
        turn = {"role": "user", "content": text, **({"pictures": [names[i] for i in shown]} if shown else {})}
        (example,) = renderer.encode([turn, {"role": "assistant", "content": answer}])
        labels = [i if scored else -100 for i, scored in zip(example.input_ids, example.loss_mask, strict=True)]
        rows.append({"input_ids": example.input_ids, "labels": labels, "task": "t", "pictures": list(example.pictures)})
    features = datasets.Features(
        {
            "input_ids": datasets.List(datasets.Value("int32")),
            "labels": datasets.List(datasets.Value("int32")),
            "task": datasets.Value("string"),
            "pictures": datasets.List(datasets.Value("string")),
        }
    )
    return base, renderer, datasets.Dataset.from_list(rows, features=features)


def adapted(base, tmp_path):
    torch.set_num_threads(1)
    options = lora.resolve(lora.Options(rank=2, train=["language", "vision"]), describe(base), {})
    model = lora.apply(load_base_model(base), options, seed=0, folder=tmp_path)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


@pytest.mark.parametrize("batching", ["padded", "grouped"])
def test_division_of_a_step_changes_neither_loss_nor_weights(stage, batching, tmp_path):
    base, renderer, rows = stage
    results = []
    for number, (size, tokens) in enumerate([(4, 4096), (1, 1)]):
        _, model = run(
            base.folder,
            tmp_path / str(number),
            rows=rows,
            model=adapted(base, tmp_path),
            renderer=renderer,
            batching=batching,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=4 // size,
            max_batch_tokens=tokens,
            num_train_epochs=2.0,
        )
        results.append(
            ([loss for _, loss in logged(tmp_path / str(number), "train/loss")], get_peft_model_state_dict(model))
        )
    (whole, weights), (single, others) = results
    assert whole == pytest.approx(single, abs=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=2e-5, rtol=1e-3)


def test_loss_is_that_of_a_plain_loop_over_single_rows(stage, tmp_path):
    base, renderer, rows = stage
    model, total, count = adapted(base, tmp_path), 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        shown = [[renderer.picture_store.get(name) for name in row["pictures"]]]
        with torch.no_grad():
            logits = model(input_ids=ids, **renderer.pictures.tensors(shown, ids)).logits[0]
        total += float(functional.cross_entropy(logits[:-1], labels[1:], reduction="sum", ignore_index=-100))
        count += int((labels[1:] != -100).sum())
    run(base.folder, tmp_path / "run", rows=rows, model=model, renderer=renderer, batching="grouped")
    assert logged(tmp_path / "run", "train/loss")[0][1] == pytest.approx(total / count, rel=1e-4)
