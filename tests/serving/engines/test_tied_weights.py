"""A tied base that holds its output layer alone: laid out anew for vLLM, the same model for everybody, and proven on vLLM."""

import json
import shutil

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from served_models import VersionMaker
from serving_process import CHAT, ask, body, marked, serving, wait_until
from transformers import AutoModelForCausalLM

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.serving.engines.tied_weights import readable_by_vllm


@pytest.fixture
def output_only(tmp_path):
    """The embedded base, tied, with its embeddings under the output's name."""
    folder = tmp_path / "output-only"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(folder / "model.safetensors")
    tied = weights.pop("model.embed_tokens.weight")
    save_file({**weights, "lm_head.weight": tied}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        return model(torch.tensor([[1, 40, 41, 42]])).logits


def test_the_tied_weights_get_the_inputs_name(output_only, tmp_path):
    for _ in range(2):  # an engine is started again in the same folder
        found = readable_by_vllm(output_only, tmp_path / "view")
    assert found == tmp_path / "view"
    places = json.loads((found / "model.safetensors.index.json").read_text())["weight_map"]
    assert places["model.embed_tokens.weight"] == "model-embed-tokens.safetensors"
    read = load_file(found / "model-embed-tokens.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(read, load_file(output_only / "model.safetensors")["lm_head.weight"])
    assert torch.equal(_logits(found), _logits(output_only))


def test_other_bases_are_left_alone(tmp_path):
    assert readable_by_vllm(EMBEDDED_FOLDER, tmp_path / "view") == EMBEDDED_FOLDER
    assert not (tmp_path / "view").exists()


@pytest.mark.vllm
def test_vllm_serves_it_and_nothing_is_left_when_the_router_is_killed(output_only, tmp_path, empty_store, monkeypatch):
    """The certificate compares the base's log-probabilities with those of Transformers: ready means that they agree.

    vLLM has its worker apart here, and is answering when its router dies.
    """
    pytest.importorskip("vllm", reason="vLLM is not installed")
    monkeypatch.chdir(tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    maker = VersionMaker(f"sqlite:///{tmp_path}/mlflow.db", output_only, "output-only")
    maker.client.set_registered_model_alias("tied", "champion", maker.make("tied", seed=1))
    mark = str(tmp_path)
    own = {"FINETUNE_TEST": mark, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with serving(tmp_path, maker.uri, "tied", "--engine", "vllm", **own) as service:
        assert ask(service, "tied@champion").status_code == 200
        request = body("tied@champion", stream=True, max_tokens=200, ignore_eos=True)
        with httpx.stream("POST", service.url + CHAT, json=request, timeout=60) as answer:
            next(answer.iter_lines())
            service.process.kill()
            wait_until(lambda: not marked(mark), seconds=15)
