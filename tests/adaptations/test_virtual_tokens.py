"""Virtual tokens: read as any token in batches and packed rows, saved as they answer, and nothing where a row has none."""

import json
from pathlib import Path

import datasets
import pytest
import torch
from peft import PeftModel
from pipeline_runs import config_for
from safetensors.torch import load_file
from tiny_bases import tiny_base
from training.shared_steps import together
from training.trained import IGNORED, LENGTHS, naive_loss, rows_of, run
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError, ConfigError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, context_length, greedy_answers
from mlflow_finetune_plugin.evaluation.virtual_tokens import virtual_token_ids, with_virtual_tokens
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.planning.plan import make_plan
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.processes import Processes
from mlflow_finetune_plugin.training.saving import Saves
from mlflow_finetune_plugin.training.weights import trained_weights

ADAPTATIONS = ("prompt", "prefix", "ptuning")
COUNT = 5
PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [15], [16, 17, 18, 19]]


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("llama"))


@pytest.fixture(params=ADAPTATIONS)
def adaptation(request) -> str:
    return request.param


def base_at(folder: Path) -> loading.BaseModel:
    return loading.find_base_model(BaseModelSettings(name=str(folder)), {})


def facts_of(folder: Path) -> BaseFacts:
    return loading.describe(base_at(folder))


def wrapped(folder: Path, adaptation: str, **options) -> tuple[PeftModel, object]:
    module = load_method("adaptation", adaptation)
    options = module.resolve(module.Options(**{"num_virtual_tokens": COUNT, **options}), facts_of(folder), {})
    torch.set_num_threads(1)
    return module.apply(loading.load_base_model(base_at(folder)), options, seed=0, folder=folder).eval(), options


def moved(model: PeftModel) -> PeftModel:
    """As if trained: every trained weight differs from its start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@torch.no_grad()
def by_hand(model: torch.nn.Module, prompt: list[int], tokens: int) -> list[int]:
    """Answer one row without cache and padding."""
    ids = with_virtual_tokens(model, [prompt])[0]
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[-tokens:]


def rows_after(first: list[int]) -> datasets.Dataset:
    """Rows as the data room writes them, after the virtual tokens."""
    rows = rows_of(LENGTHS)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[*first, *row["input_ids"]] for row in rows],
            "labels": [[IGNORED] * len(first) + row["labels"] for row in rows],
            "task": rows["task"],
        }
    )


def test_saved_adapter_answers_as_the_trained_one_and_holds_rows_only(adaptation, llama, tmp_path):
    model, options = wrapped(llama, adaptation)
    moved(model)
    load_method("adaptation", adaptation).save(model, options, tmp_path, start=tmp_path)
    again = PeftModel.from_pretrained(loading.load_base_model(base_at(llama)), tmp_path).eval()
    ids = torch.tensor(with_virtual_tokens(model, PROMPTS[:1]))
    assert ids[0, :COUNT].tolist() == list(range(300, 300 + COUNT)) == virtual_token_ids(again)
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-6, rtol=0)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.shape[0] for tensor in weights.values()} == {COUNT}
    assert len(weights) == (4 if adaptation == "prefix" else 1)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["encoder_hidden_size"] is None
    assert model.peft_config["default"].encoder_hidden_size == (32 if adaptation == "ptuning" else None)


def test_answers_in_a_batch_equal_those_of_one_row(adaptation, llama):
    model = moved(wrapped(llama, adaptation)[0])
    expected = [by_hand(model, prompt, 6) for prompt in PROMPTS]
    assert greedy_answers(model, PROMPTS, max_new_tokens=6, stop_token_ids=[], pad_token_id=0) == expected
    together = completion_log_probs(model, PROMPTS, expected, pad_token_id=0)
    for prompt, answer, log_probs in zip(PROMPTS, expected, together, strict=True):
        (alone,) = completion_log_probs(model, [prompt], [answer], pad_token_id=0)
        assert abs(alone - log_probs).max() < 2e-5


def test_base_has_no_virtual_tokens_and_all_of_its_context(adaptation, llama):
    model, base = moved(wrapped(llama, adaptation)[0]), loading.load_base_model(base_at(llama)).eval()
    scored = {"completions": PROMPTS, "pad_token_id": 0}
    alone = completion_log_probs(base, PROMPTS, **scored)
    assert context_length(model) == 128 - COUNT
    with model.disable_adapter():
        assert virtual_token_ids(model) == []
        assert context_length(model) == 128
        off = completion_log_probs(model, PROMPTS, **scored)
    on = completion_log_probs(model, PROMPTS, **scored)
    assert all((a == b).all() for a, b in zip(alone, off, strict=True))
    assert any((a != b).any() for a, b in zip(alone, on, strict=True))


def test_start_reads_as_the_text_that_it_is(adaptation, llama):
    """The text is repeated to the number of virtual tokens."""
    text = "parcel kettle"
    model, _ = wrapped(llama, adaptation, init_text=text, num_virtual_tokens=20)
    ids = AutoTokenizer.from_pretrained(llama)(text, add_special_tokens=False).input_ids
    start = (ids * 20)[:20]
    base = loading.load_base_model(base_at(llama)).eval()
    with torch.no_grad():
        expected = base(torch.tensor([[*start, *PROMPTS[1]]])).logits[:, 20:]
        actual = model(torch.tensor(with_virtual_tokens(model, PROMPTS[1:2]))).logits[:, 20:]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_equal_seeds_start_alike(adaptation, llama):
    first, second = (wrapped(llama, adaptation)[0] for _ in range(2))
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.train
@pytest.mark.parametrize("settings", [{}, {"batching": "padded"}, {"gradient_checkpointing": True}], ids=str)
def test_loss_of_packed_and_padded_rows_is_that_of_single_rows(adaptation, settings, llama, tmp_path):
    model = moved(wrapped(llama, adaptation)[0])
    rows = rows_after(virtual_token_ids(model))
    loss = float(naive_loss(model, rows).detach())
    result, _ = run(llama, tmp_path, rows=rows, model=model, **settings)
    assert result.losses == [(1, pytest.approx(loss, abs=1e-5))]


@pytest.mark.train
def test_checkpointed_gradients_are_those_without(adaptation, llama, tmp_path):
    """Layers that are computed again read the positions of their own micro-batch."""
    trained = []
    for checkpointing in (False, True):
        model = moved(wrapped(llama, adaptation)[0])
        rows = rows_after(virtual_token_ids(model))
        settings = {"optim": "sgd", "learning_rate": 0.1, "max_batch_tokens": 48}
        run(
            llama,
            tmp_path / str(checkpointing),
            rows=rows,
            model=model,
            gradient_checkpointing=checkpointing,
            **settings,
        )
        trained.append({name: p.detach() for name, p in model.named_parameters() if p.requires_grad})
    for name, weights in trained[0].items():
        torch.testing.assert_close(trained[1][name], weights, atol=1e-6, rtol=0, msg=name)


@pytest.mark.train
def test_resumed_training_ends_as_the_whole_one(adaptation, llama, tmp_path):
    settings = {"per_device_train_batch_size": 4, "num_train_epochs": 2.0, "save_steps": 2}

    def train(folder: Path, checkpoint: Checkpoint | None = None) -> PeftModel:
        model = wrapped(llama, adaptation)[0]
        saves = Saves(folder / "checkpoints", 9, dict, lambda saved: None)
        rows = rows_after(virtual_token_ids(model))
        run(llama, folder, rows=rows, model=model, saves=saves, checkpoint=checkpoint, **settings)
        return model

    whole = train(tmp_path / "whole")
    checkpoint = Checkpoint(tmp_path / "whole" / "checkpoints" / "checkpoint-2", 2, {})
    resumed = train(tmp_path / "resumed", checkpoint)
    for (name, a), (_, b) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.train
@pytest.mark.process
def test_two_processes_make_the_steps_of_one(adaptation, llama, tmp_path):
    def train(processes: Processes) -> None:
        folder = tmp_path / f"{processes.count}-{processes.rank}"
        model = wrapped(llama, adaptation)[0]
        rows = rows_after(virtual_token_ids(model))
        run(
            llama, folder, rows=rows, model=model, processes=processes, per_device_train_batch_size=4 // processes.count
        )
        torch.save(trained_weights(model), folder / "weights.pt")

    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        assert together(count, tmp_path / str(count), train) == [0] * count
    alone, shared = (torch.load(tmp_path / f"{count}-0" / "weights.pt") for count in (1, 2))
    for name, weights in alone.items():
        torch.testing.assert_close(shared[name], weights, atol=1e-5, rtol=0, msg=name)


@pytest.mark.bad_input
def test_what_a_base_cannot_take_is_refused(llama):
    facts = facts_of(llama)
    for name in ADAPTATIONS:
        module, reasons = load_method("adaptation", name), {}
        assert module.resolve(module.Options(), facts, reasons).num_virtual_tokens == 16
        assert reasons["options.num_virtual_tokens"] == "16: an eighth of the base's context of 128"
        with pytest.raises(BaseModelError, match="num_virtual_tokens = 64: takes half of the base's context of 128"):
            module.resolve(module.Options(num_virtual_tokens=64), facts, reasons)
    prefix = load_method("adaptation", "prefix")
    with pytest.raises(BaseModelError, match=r"options\.key_value_modules: elbow matches no module of this base"):
        prefix.resolve(prefix.Options(key_value_modules=["elbow"]), facts, {})


@pytest.mark.bad_input
def test_max_length_must_leave_room_for_a_row(llama, tmp_path):
    config = config_for(tmp_path, llama, adaptation="prompt", training={"max_length": 16})
    with pytest.raises(ConfigError, match="the 16 virtual tokens leave no token for a row"):
        make_plan(config.model_copy(update={"options": {}}))
