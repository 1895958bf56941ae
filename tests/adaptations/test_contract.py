"""What every adaptation must keep, on every architecture: it trains, loads back as it was, and leaves the base alone."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from peft import PeftModel
from pipeline_runs import Ran, config_for, run_pipeline
from safetensors.torch import load_file, save_file
from tiny_bases import FAMILIES, tiny_base

from mlflow_finetune_plugin.adaptations._peft import MODULES
from mlflow_finetune_plugin.base_models import loading
from mlflow_finetune_plugin.base_models.facts import BaseFacts
from mlflow_finetune_plugin.base_models.settings import BaseModelSettings
from mlflow_finetune_plugin.config.run_config import RunConfig
from mlflow_finetune_plugin.errors import TrainingError
from mlflow_finetune_plugin.evaluation.virtual_tokens import with_virtual_tokens
from mlflow_finetune_plugin.logged_models.adapter import check_adapter_file, reload_adapter
from mlflow_finetune_plugin.methods import Adaptation, load_method, method_names

ADAPTATIONS = [name for name in method_names("adaptation") if name not in MODULES]  # rows: test_peft_methods.py
# each adaptation's smallest options, and a learning rate at which three steps show
SMALL = {
    "lora": ({"rank": 4}, 2e-3),
    "qlora": ({"rank": 4}, 2e-3),
    "bottleneck": ({}, 1e-2),
    "ia3": ({}, 5e-2),
    "prompt": ({"num_virtual_tokens": 6}, 5e-2),
    "prefix": ({"num_virtual_tokens": 6}, 5e-2),
    "ptuning": ({"num_virtual_tokens": 6}, 1e-2),
    "full": ({}, 1e-3),
}
# adaptations whose rows start with virtual tokens
VIRTUAL = {"prompt", "prefix", "ptuning"}
# families that differ in what an adaptation touches: rotary positions, transposed layers, experts, tied embeddings
KINDS = ("llama", "gpt2", "mixtral", "gemma2")
# every pair; the quick tier has each family with lora, and each adaptation with each kind of family
PAIRS = [
    pytest.param(adaptation, family, marks=() if adaptation == "lora" or family in KINDS else pytest.mark.train)
    for family in FAMILIES
    for adaptation in ADAPTATIONS
]
# stock MLflow, in a process that cannot import this project
STRANGER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "mlflow_finetune_plugin":
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocker())
import torch; torch.set_num_threads(1)
import mlflow
questions = json.loads(sys.argv[2])
answers = {
    name: list(mlflow.pyfunc.load_model(folder).predict(questions[name]))
    for name, folder in json.loads(sys.argv[1]).items()
}
assert "mlflow_finetune_plugin" not in sys.modules
print("ANSWERS" + json.dumps(answers))
"""


def loaded(adaptation: str) -> Adaptation:
    return load_method("adaptation", adaptation)


def small_config(folder: Path, base: str | Path, adaptation: str, **sections) -> RunConfig:
    options, rate = SMALL[adaptation]
    quantization = loaded(adaptation).QUANTIZATION
    sections = {
        "adaptation": adaptation,
        "base_model": {"name": str(base), "quantization": quantization},
        **sections,
        "training": {"learning_rate": rate, "save_steps": None, **sections.get("training", {})},
    }
    config = config_for(folder, base, **sections)
    return config.model_copy(update={"options": {**options, **sections.get("options", {})}})


def read_by(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the rows as this model reads them: after its virtual tokens."""
    return torch.tensor(with_virtual_tokens(model, ids.tolist()))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Return a function that describes a tiny base of a family, made when first asked for."""

    @functools.cache
    def get(family: str, quantization: str | None) -> tuple[loading.BaseModel, BaseFacts]:
        folder = tiny_base(tmp_path_factory.mktemp(family), family)
        base = loading.find_base_model(BaseModelSettings(name=str(folder), quantization=quantization), {})
        return base, loading.describe(base)

    return get


@pytest.fixture(scope="module")
def runs(tmp_path_factory, empty_store):
    """One run of each adaptation on a tiny Llama, made when first asked for."""
    made: dict[str, Ran] = {}

    def get(adaptation: str) -> Ran:
        if adaptation not in made:
            folder = tmp_path_factory.mktemp(adaptation)
            config = small_config(folder, tiny_base(folder / "base"), adaptation, training={"max_steps": 6})
            made[adaptation] = run_pipeline(folder / "run", empty_store, config)
        return made[adaptation]

    return get


@pytest.mark.train
@pytest.mark.parametrize("adaptation", [name for name in ADAPTATIONS if name != "lora"])  # lora: test_pipeline.py
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])  # all families, without the pipeline: the test below
def test_run_gives_back_what_was_trained(adaptation, family, runs, tmp_path, empty_store):
    if family == "llama":
        ran = runs(adaptation)
    else:
        steps = {"max_steps": 30} if adaptation in VIRTUAL else {}  # random learned positions hide what three steps do
        config = small_config(tmp_path, tiny_base(tmp_path / "base", family), adaptation, training=steps)
        ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.reload_error() < 1e-5
    losses = [m.value for m in ran.client.get_metric_history(ran.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    assert ran.run.data.metrics["eval/gain/perplexity"] > 0
    serving = {"full": "merge", "qlora": "vllm", "ia3": "convertible"}.get(adaptation, "transformers")
    assert ran.run.data.tags["finetune.serving"] == (serving if family != "gpt2" else "transformers")


@pytest.mark.parametrize(("adaptation", "family"), PAIRS)
def test_every_family_learns_and_loads_back(adaptation, family, bases, tmp_path):
    """Without the pipeline: wrapped, one optimiser step that lowers the loss, saved, loaded by PEFT on a fresh base."""
    module, (small, rate) = loaded(adaptation), SMALL[adaptation]
    base, facts = bases(family, module.QUANTIZATION)
    options = module.resolve(module.Options(**small), facts, {})
    model = module.apply(loading.load_base_model(base), options, seed=0, folder=tmp_path)
    ids = read_by(model, torch.arange(3, 43).reshape(2, 20))
    labels = ids.masked_fill(ids >= model.get_input_embeddings().weight.shape[0], -100)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    first = model(ids, labels=labels).loss
    first.backward()
    blocks = {int(part) for name in trainable for part in name.split(".") if part.isdigit()}
    assert blocks == (set() if adaptation in ("prompt", "ptuning") else {0, 1})
    torch.optim.Adam(trainable.values(), lr=rate).step()
    model.eval()
    with torch.inference_mode():
        trained = model(ids, labels=labels)
    assert trained.loss < first
    module.save(model, options, tmp_path / "saved", start=tmp_path)
    again = PeftModel.from_pretrained(loading.load_base_model(base), tmp_path / "saved").eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(ids).logits, trained.logits, atol=1e-6, rtol=0)


@pytest.mark.train
@pytest.mark.process
def test_stock_mlflow_loads_each_where_this_package_cannot_be_imported(runs):
    """All of them in one process: what one model brings along must not disturb the next."""
    models, proven = {}, {}
    for adaptation in ADAPTATIONS:
        ran = runs(adaptation)
        mlflow.set_tracking_uri(ran.tracking_uri)  # each run has registered its model in a store of its own
        models[adaptation] = mlflow.artifacts.download_artifacts(ran.result["model_uri"])
        table = json.loads(ran.artifact("proof/rows.json").read_text())
        proven[adaptation] = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    questions = {name: [row["prompt"] for row in rows] for name, rows in proven.items()}
    process = subprocess.run(
        [sys.executable, "-c", STRANGER, json.dumps(models), json.dumps(questions)],
        cwd="/",
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    line = next(line for line in process.stdout.splitlines() if line.startswith("ANSWERS"))
    answers = json.loads(line.removeprefix("ANSWERS"))
    assert answers == {name: [row["adapter_answer"] for row in rows] for name, rows in proven.items()}
    for adaptation, folder in models.items():
        code = {path.name for path in Path(folder).glob("code/*.py")}
        assert code == {"answer_text.py", "weights_digest.py", *(file.name for file in loaded(adaptation).MODEL_CODE)}


@pytest.mark.train
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_base_is_bit_for_bit_itself_with_the_adapter_off(adaptation, runs):
    ran = runs(adaptation)
    mlflow.set_tracking_uri(ran.tracking_uri)
    model, _ = reload_adapter(ran.result["model_uri"])
    settings = BaseModelSettings(**ran.config.base_model.model_dump())
    base = loading.load_base_model(loading.find_base_model(settings, {})).eval()
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.inference_mode():
        alone = base(ids).logits
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, alone)
        assert not torch.equal(model(read_by(model, ids)).logits[:, -ids.shape[1] :], alone)


@pytest.mark.train
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_start_is_the_base_and_the_base_is_frozen(adaptation, runs, tmp_path):
    config, module = runs(adaptation).config, loaded(adaptation)
    found = loading.find_base_model(config.base_model, {})
    options = module.resolve(config.adaptation_options(), loading.describe(found), {})
    base = loading.load_base_model(found).eval()
    ids = torch.arange(3, 40).reshape(1, -1)
    with torch.inference_mode():
        alone = base(ids).logits
    before = {id(parameter) for parameter in base.parameters()}
    model = module.apply(base, options, seed=0, folder=tmp_path).eval()
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, alone)
    assert all(not p.requires_grad for p in model.parameters() if id(p) in before)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable
    assert {p.dtype for p in trainable} == {torch.float32}


@pytest.mark.train
@pytest.mark.parametrize("adaptation", [name for name in ADAPTATIONS if name not in VIRTUAL])  # they act at their start
def test_adapter_at_its_start_is_refused_and_the_trained_one_is_not(adaptation, runs, tmp_path):
    ran, module = runs(adaptation), loaded(adaptation)
    check_adapter_file(ran.work / "adapter", module)
    found = loading.find_base_model(ran.config.base_model, {})
    options = module.resolve(ran.config.adaptation_options(), loading.describe(found), {})
    model = module.apply(loading.load_base_model(found), options, seed=0, folder=tmp_path)
    module.save(model, options, tmp_path / "saved", start=tmp_path)
    if adaptation != "full":  # its file holds whole weights; that they changed is checked on the model
        with pytest.raises(TrainingError, match="at its start"):
            check_adapter_file(tmp_path / "saved", module)
    weights = load_file(ran.work / "adapter" / "adapter_model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] * float("nan")}, tmp_path / "saved" / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match="NaN or infinite"):
        check_adapter_file(tmp_path / "saved", module)


@pytest.mark.train
@pytest.mark.parametrize("adaptation", ADAPTATIONS)
def test_adapter_folder_is_pefts_and_the_same_in_every_process(adaptation, runs):
    folder = runs(adaptation).work / "adapter"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    names = config["target_modules"]
    assert names == sorted(names)
    base = loading.load_base_model(loading.find_base_model(runs(adaptation).config.base_model, {}))
    plain = PeftModel.from_pretrained(base, folder)
    saved = load_file(folder / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): tensor for name, tensor in plain.state_dict().items()}
    assert saved
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("adaptation", ADAPTATIONS)
@pytest.mark.parametrize("objective", method_names("objective"))
def test_every_pair_has_options_and_a_learning_rate_with_its_reason(adaptation, objective, bases, tmp_path):
    module = loaded(adaptation)
    base, facts = bases("llama", module.QUANTIZATION)
    config = small_config(tmp_path, base.folder, adaptation, objective=objective)
    assert (config.adaptation, config.objective) == (adaptation, objective)
    reasons: dict[str, str] = {}
    resolved = module.resolve(module.Options(), facts, reasons)
    autos = [name for name, value in module.Options().model_dump().items() if value == "auto"]
    assert "auto" not in resolved.model_dump().values()
    assert {f"options.{name}" for name in autos} <= set(reasons)
    for width in (64, 4096):
        rate, why = module.learning_rate(type(facts)("llama", width, 2048, 7 * 10**9, {"a": (1, 1)}))
        assert 1e-5 <= rate < 1
        assert why
    assert module.serving(resolved) in ("vllm", "convertible", "merge", "transformers")
