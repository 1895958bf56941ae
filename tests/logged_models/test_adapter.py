"""The logged model: it loads anywhere, gives back what was trained, and what cannot be trusted is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from pipeline_runs import Ran, config_for, run_pipeline
from safetensors.torch import load_file, save_file
from tiny_bases import tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from mlflow_finetune_plugin.adaptations import lora
from mlflow_finetune_plugin.errors import ReloadError, TrainingError
from mlflow_finetune_plugin.evaluation.results import EvalRow
from mlflow_finetune_plugin.logged_models.adapter import (
    Reference,
    check_adapter_file,
    check_adapter_moved,
    check_reload,
    reload_adapter,
)

# Stock MLflow, in a process that cannot import this project; the answers come back as JSON
STRANGER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mlflow_finetune_plugin":
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import torch; torch.set_num_threads(1)
import mlflow, pandas as pd
path, config = sys.argv[1], json.loads(sys.argv[2])
model = mlflow.pyfunc.load_model(path, model_config=config)
question = "a word about my parcel, number 100"
chat = [{"role": "user", "content": question}]
answers = {
    "texts": model.predict([question, "and my kettle?"]),
    "frame": model.predict(pd.DataFrame({"prompt": [question]})),
    "chats": model.predict([{"messages": chat}]),
    "chat frame": model.predict(pd.DataFrame({"messages": [chat]})),
    "one token": model.predict([question], params={"max_new_tokens": 1}),
    "one by one": model.predict([question, "and my kettle?"], params={"batch_size": 1}),
    "sampled": model.predict([question] * 8, params={"temperature": 5.0, "max_new_tokens": 8}),
}
assert "mlflow_finetune_plugin" not in sys.modules
print("ANSWERS" + json.dumps({name: list(value) for name, value in answers.items()}))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory, empty_store) -> Ran:
    """A base whose own generation config would sample and punish repetition, were it asked."""
    folder = tmp_path_factory.mktemp("model")
    base = tiny_base(folder / "base", "qwen3")
    GenerationConfig(do_sample=True, temperature=0.6, top_k=20, repetition_penalty=3.0).save_pretrained(base)
    return run_pipeline(folder / "run", empty_store, config_for(folder, base, training={"max_steps": 6}))


@pytest.fixture(scope="module")
def model_folder(ran) -> Path:
    return Path(mlflow.artifacts.download_artifacts(ran.result["model_uri"], tracking_uri=ran.tracking_uri))


@pytest.fixture(scope="module")
def held_out(ran) -> tuple[EvalRow, ...]:
    """The rows of the reference file, as the pipeline scored them."""
    probes = json.loads((ran.work / "reference.json").read_text())["probes"]
    return tuple(
        EvalRow((), tuple(probe["prompt_ids"]), tuple(probe["completion_ids"]), "", "", "", 0) for probe in probes
    )


def stranger(model: Path, **config: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-c", STRANGER, str(model), json.dumps(config)],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def answers_of(process: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    assert process.returncode == 0, process.stderr[-3000:]
    line = next(line for line in process.stdout.splitlines() if line.startswith("ANSWERS"))
    return json.loads(line.removeprefix("ANSWERS"))


@pytest.mark.train
@pytest.mark.process
def test_stock_mlflow_loads_it_where_this_package_cannot_be_imported(ran, model_folder, tmp_path):
    base = Path(ran.config.base_model.name)
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    answers = answers_of(stranger(model_folder, base_model=str(moved)))
    rows = json.loads(ran.artifact("proof/rows.json").read_text())
    proven = dict(zip(rows["columns"], rows["data"][0], strict=True))
    assert proven["prompt"] == "a word about my parcel, number 100"
    assert answers["texts"][0] == proven["adapter_answer"]
    assert len({answers[kind][0] for kind in ("texts", "frame", "chats", "chat frame", "one by one")}) == 1
    assert answers["one by one"] == answers["texts"]
    assert answers["texts"][0].startswith(answers["one token"][0])
    assert answers["one token"][0] != answers["texts"][0]
    assert len(set(answers["sampled"])) > 1


@pytest.mark.train
def test_moved_base_must_be_given_and_must_be_the_same(ran, model_folder, tmp_path, monkeypatch):
    base = Path(ran.config.base_model.name)
    moved = tmp_path / "moved"
    shutil.move(base, moved)
    try:
        with pytest.raises(FileNotFoundError, match="model_config"):
            mlflow.pyfunc.load_model(str(model_folder))
        with pytest.raises(ReloadError, match="cannot be loaded back"):
            reload_adapter(str(model_folder))
        loaded = mlflow.pyfunc.load_model(str(model_folder), model_config={"base_model": str(moved)})
        assert len(loaded.predict(["where is my parcel?"])) == 1
    finally:
        shutil.move(moved, base)
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1e-3
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="another base model"):
        mlflow.pyfunc.load_model(str(model_folder), model_config={"base_model": str(other)})
    unchecked = {"base_model": str(other), "verify_base": False}
    assert mlflow.pyfunc.load_model(str(model_folder), model_config=unchecked).predict(["hello"])


@pytest.mark.train
def test_model_holds_the_adapter_and_no_base(ran, model_folder):
    files = [path for path in model_folder.rglob("*") if path.is_file()]
    assert not [p for p in files if p.suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth", ".joblib")]
    assert [p.name for p in files if p.suffix == ".safetensors"] == ["adapter_model.safetensors"]
    weights = next(p for p in files if p.suffix == ".safetensors")
    assert all("lora_" in name for name in load_file(weights))
    base_weights = (Path(ran.config.base_model.name) / "model.safetensors").stat().st_size
    assert weights.stat().st_size < base_weights / 2
    names = {p.name for p in files}
    assert {"tokenizer.json", "chat_template.jinja", "adapter_config.json", "reference.json", "finetune.json"} <= names
    template = next(p for p in files if p.name == "chat_template.jinja")
    assert "<|im_start|>" in template.read_text()
    requirements = (model_folder / "requirements.txt").read_text()
    assert "peft==" in requirements
    assert "bitsandbytes" not in requirements


@pytest.mark.train
def test_adapter_loads_with_plain_peft_and_says_the_same(ran, model_folder):
    base = AutoModelForCausalLM.from_pretrained(ran.config.base_model.name, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, model_folder / "artifacts" / "adapter").eval()
    ours, tokenizer = reload_adapter(str(model_folder))
    ids = torch.tensor([tokenizer("my parcel has not come")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(plain(ids).logits, ours(ids).logits)
    original = AutoTokenizer.from_pretrained(ran.config.base_model.name)
    assert tokenizer.get_vocab() == original.get_vocab()
    assert tokenizer.chat_template == original.chat_template


@pytest.mark.train
def test_reference_holds_true_log_probabilities(ran, model_folder):
    reference = json.loads((model_folder / "artifacts" / "reference.json").read_text())
    assert reference["precision"] == "float32"
    assert len(reference["probes"]) == 12
    base = AutoModelForCausalLM.from_pretrained(ran.config.base_model.name, dtype=torch.float32).eval()
    expected_base = [naive_log_probs(base, probe) for probe in reference["probes"]]
    adapted = PeftModel.from_pretrained(base, model_folder / "artifacts" / "adapter").eval()
    expected_adapter = [naive_log_probs(adapted, probe) for probe in reference["probes"]]
    for probe, of_base, of_adapter in zip(reference["probes"], expected_base, expected_adapter, strict=True):
        np.testing.assert_allclose(probe["base_log_probs"], of_base, atol=1e-5)
        np.testing.assert_allclose(probe["adapter_log_probs"], of_adapter, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(model_folder / "artifacts" / "tokenizer")
    first = reference["probes"][0]
    assert tokenizer(first["prompt"], add_special_tokens=False)["input_ids"] == first["prompt_ids"]
    assert tokenizer.decode(first["completion_ids"]) == "delivery<|im_end|>"


def naive_log_probs(model: torch.nn.Module, probe: dict) -> list[float]:
    """One row, no batch, no cache, no helper of ours."""
    prompt, completion = probe["prompt_ids"], probe["completion_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + completion])).logits[0].double()
    log_probs = torch.log_softmax(logits, dim=-1)
    return [float(log_probs[len(prompt) - 1 + i, token]) for i, token in enumerate(completion)]


@pytest.mark.train
def test_reload_check_accepts_the_model_and_refuses_a_changed_one(ran, model_folder, held_out, tmp_path):
    reference = Reference(**json.loads((ran.work / "reference.json").read_text()))
    model, tokenizer = reload_adapter(str(model_folder))
    assert check_reload(model, tokenizer, reference, held_out) < 1e-5
    changed = shutil.copytree(model_folder, tmp_path / "changed")
    path = changed / "artifacts" / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if "lora_B" in name)
    weights[name] = weights[name] + 0.05
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ReloadError, match="differs from the trained one"):
        check_reload(*reload_adapter(str(changed)), reference, held_out)


@pytest.mark.train
def test_reload_check_refuses_lost_tensors_and_broken_files(ran, model_folder, held_out, tmp_path):
    reference = Reference(**json.loads((ran.work / "reference.json").read_text()))
    lost = shutil.copytree(model_folder, tmp_path / "lost")
    path = lost / "artifacts" / "adapter" / "adapter_model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if "layers.0" not in name}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ReloadError):
        check_reload(*reload_adapter(str(lost)), reference, held_out)
    half = shutil.copytree(model_folder, tmp_path / "half")
    path = half / "artifacts" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ReloadError, match="cannot be loaded back"):
        reload_adapter(str(half))


@pytest.mark.train
def test_reload_check_sees_a_base_that_is_not_the_one(ran, model_folder, held_out):
    reference = Reference(**json.loads((ran.work / "reference.json").read_text()))
    model, tokenizer = reload_adapter(str(model_folder))
    with torch.no_grad():
        model.get_base_model().model.norm.weight.add_(0.05)
    with pytest.raises(ReloadError):
        check_reload(model, tokenizer, reference, held_out)
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(float("nan"))
    with pytest.raises(ReloadError, match="nan"):
        check_reload(model, tokenizer, reference, held_out)


@pytest.mark.bad_input
@pytest.mark.train
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weights: {name: t * float("nan") for name, t in weights.items()}, "NaN or infinite"),
        (lambda weights: {name: t + float("inf") if "lora_B" in name else t for name, t in weights.items()}, "NaN or"),
        (lambda weights: {name: t * 0 for name, t in weights.items()}, "at its start"),
        (lambda weights: {name: t * 0 if "lora_B" in name else t for name, t in weights.items()}, "at its start"),
    ],
    ids=["nan", "infinite", "zero", "B still zero"],
)
def test_adapter_file_that_cannot_act_is_refused(ran, change, message, tmp_path):
    folder = shutil.copytree(ran.work / "adapter", tmp_path / "adapter")
    check_adapter_file(folder, lora)
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match=message):
        check_adapter_file(folder, lora)


def test_adapter_that_answers_as_the_base_is_refused():
    probe = {"base_log_probs": [-1.0, -2.0], "adapter_log_probs": [-1.0, -2.0]}
    with pytest.raises(TrainingError, match="exactly as the base"):
        check_adapter_moved(Reference("float32", [probe]))
    check_adapter_moved(Reference("float32", [{**probe, "adapter_log_probs": [-1.0, -2.0000002]}]))


@pytest.mark.train
def test_input_that_is_no_question_is_an_error(model_folder):
    model = mlflow.pyfunc.load_model(str(model_folder))
    for wrong in (pd.DataFrame({"prompt": [None], "other": [1]}), [{"question": "hello"}], [3], [None]):
        with pytest.raises(ValueError, match="`prompt`"):
            model.predict(wrong)
    texts = ["hello", "where is my parcel?"]
    expected = model.predict(texts)
    assert len(expected) == 2
    assert model.predict(pd.DataFrame({"id": [1, 2], "prompt": texts}, index=[7, 3])) == expected
    assert model.predict(pd.Series(texts)) == expected
    assert model.predict(np.array(texts)) == expected
    assert model.predict(texts[0]) == expected[:1]
    assert model.predict([]) == []
