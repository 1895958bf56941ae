import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.data.tokens.trained_tokens import untrained_reason, untrained_tokens


def saved(folder, rows, name="lm_head.weight"):
    save_file({name: rows}, folder / "model.safetensors")
    return folder


@pytest.fixture
def rows():
    return torch.randn(400, 32, generator=torch.Generator().manual_seed(0))


def test_row_that_is_like_no_other_was_trained(tmp_path, rows):
    assert untrained_reason(saved(tmp_path, rows), 7) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_row_that_others_share_was_not(tmp_path, rows, dtype):
    rows[[7, 8, 9, 300]] = rows[7] + 0.001 * torch.randn(4, 32)
    folder = saved(tmp_path, rows.to(dtype))
    assert "is the same as that of 3 other tokens" in untrained_reason(folder, 7)
    assert untrained_reason(folder, 10) is None


def test_file_larger_than_memory_is_looked_at(tmp_path, rows):
    """A sparse file of 4 TB: what is mapped for reading alone takes no memory, whatever the file's size."""
    rows[[7, 8, 9]] = rows[7].clone()
    start = 4 * 2**40
    entries = {"a.weight": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, start]}}
    entries["lm_head.weight"] = {"dtype": "F32", "shape": [400, 32], "data_offsets": [start, start + rows.numel() * 4]}
    header = json.dumps(entries).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(start, 1)
        file.write(rows.numpy().tobytes())
    assert "is the same as that of 2 other tokens" in untrained_reason(tmp_path, 7)
    assert untrained_tokens(tmp_path, np.array([6, 7, 8])).tolist() == [7, 8]


def test_row_that_never_grew_or_is_missing_was_not(tmp_path, rows):
    rows[5] = rows[5] * 0.01
    rows[6] = 0
    folder = saved(tmp_path, rows, "model.embed_tokens.weight")
    assert "has norm" in untrained_reason(folder, 5)
    assert "all zeros" in untrained_reason(folder, 6)
    assert "has no row in model.embed_tokens.weight (400 rows)" in untrained_reason(folder, 400)


def test_folder_without_weights_says_nothing(tmp_path):
    assert untrained_reason(tmp_path, 0) is None
    assert untrained_tokens(tmp_path, np.array([0, 1])).tolist() == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_untrained_tokens_are_those_whose_reason_says_so(tmp_path, rows, dtype):
    rows[[7, 8, 9, 300]] = rows[7] + 0.001 * torch.randn(4, 32)
    rows[[5, 6]] *= torch.tensor([[0.01], [0.0]])
    folder = saved(tmp_path, rows.to(dtype))
    ids = np.array([0, 5, 6, 7, 10, 300, 399, 400])
    untrained = untrained_tokens(folder, ids)
    assert untrained.tolist() == [5, 6, 7, 300, 400]
    assert untrained.tolist() == [token for token in ids.tolist() if untrained_reason(folder, token)]


def test_a_sample_of_a_large_vocabulary_finds_them_too(tmp_path):
    rows = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    rows[15_000:] = rows[15_000] + 0.001 * torch.randn(5_000, 8)
    untrained = untrained_tokens(saved(tmp_path, rows), np.array([3, 8_191, 8_192, 15_001, 19_999]))
    assert untrained.tolist() == [15_001, 19_999]
    assert untrained_tokens(tmp_path, np.array([], dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("model", ["stories260k-hd64", "tinystories-656k-hd64"])
def test_shipped_end_tokens_were_trained(shared_data, model):
    from transformers import AutoTokenizer

    folder = shared_data / "models" / model
    assert ChatRenderer(AutoTokenizer.from_pretrained(folder), weights=folder).untrained_end_of_turn is None
    embedded = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    assert ChatRenderer(embedded, weights=EMBEDDED_FOLDER).untrained_end_of_turn is None


def test_the_trap_of_the_toy_stories_is_found(shared_data):
    """In the original release </s> was never trained."""
    from transformers import AutoTokenizer

    folder = shared_data / "models" / "stories260k-hd64"
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(folder, eos_token="</s>"), weights=folder)
    assert renderer.tokenizer.convert_ids_to_tokens(renderer.end_of_turn_token_id) == "</s>"
    assert "is the same as that of" in renderer.untrained_end_of_turn
