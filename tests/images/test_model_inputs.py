"""What a base makes of pictures: its tokens and tensors, the same alone and in company, for each family that loads here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from seeing_bases import SEEING_FAMILIES, drawn, seeing_base
from tiny_bases import tiny_base

from mlflow_finetune_plugin.base_models.loading import describe, find_base_model, load_base_model, load_picture_inputs
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.errors import BaseModelError
from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, greedy_answers
from mlflow_finetune_plugin.images import PictureInputs, PictureStore
from mlflow_finetune_plugin.images.prompts import PicturePrompt


@pytest.fixture(scope="module", params=SEEING_FAMILIES)
def base(request, tmp_path_factory):
    folder = seeing_base(tmp_path_factory.mktemp(request.param), request.param)
    return find_base_model(BaseModelSettings(name=str(folder)), {})


@pytest.fixture(scope="module")
def prompts(base, tmp_path_factory) -> list[tuple[int, ...]]:
    """A prompt with two pictures, one without any, one with one, and the same text with another picture."""
    inputs, store = load_picture_inputs(base), PictureStore(tmp_path_factory.mktemp("pictures"))
    names = [store.add(drawn(seed)) for seed in range(4)]

    def prompt(text: str, *chosen: str) -> tuple[int, ...]:
        whole = inputs.expand(text, [store.get(name) for name in chosen])
        return PicturePrompt(
            inputs.processor.tokenizer(whole, add_special_tokens=False).input_ids, chosen, inputs, store
        )

    mark = inputs.placeholder
    return [
        prompt(f"{mark}Name{mark}", *names[:2]),
        prompt("A text without any picture"),
        prompt(f"{mark}What is it?", names[2]),
        prompt(f"{mark}What is it?", names[3]),
    ]


def test_base_is_described_as_one_that_sees(base, tmp_path):
    assert describe(base).sees
    text = find_base_model(BaseModelSettings(name=str(tiny_base(tmp_path))), {})
    assert not describe(text).sees
    assert load_picture_inputs(text) is None


def test_batch_of_all_kinds_of_rows_gives_what_each_gives_alone(base, prompts):
    model = load_base_model(base).eval()
    answers = [[9, 10, 11], [12], [13, 14], [13, 14]]
    together = completion_log_probs(model, prompts, answers, pad_token_id=0)
    for prompt, answer, values in zip(prompts, answers, together, strict=True):
        alone = completion_log_probs(model, [prompt], [answer], pad_token_id=0)[0]
        np.testing.assert_allclose(values, alone, atol=2e-5)
    assert np.abs(together[2] - together[3]).max() > 1e-4, "the picture matters"
    options = {"max_new_tokens": 4, "stop_token_ids": [], "pad_token_id": 0}
    assert greedy_answers(model, prompts, **options) == [greedy_answers(model, [p], **options)[0] for p in prompts]


@pytest.mark.bad_input
@pytest.mark.parametrize(("places", "pictures"), [(0, 1), (1, 0), (2, 1)])
def test_placeholders_and_pictures_that_differ_are_refused(base, places, pictures):
    inputs = load_picture_inputs(base)
    with pytest.raises(ValueError, match=f"{places} times .* for {pictures} pictures"):
        inputs.expand(inputs.placeholder * places, [drawn(1)] * pictures)


@pytest.mark.bad_input
def test_folder_without_a_processor_for_pictures_is_refused(tmp_path: Path):
    with pytest.raises(BaseModelError, match=r"cannot be loaded|takes no pictures"):
        PictureInputs.load(tiny_base(tmp_path))
