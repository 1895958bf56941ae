"""The contract of adaptations and objectives, and the examples in docs/extending.md."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import REPOSITORY
from pipeline_runs import config_for, run_pipeline
from tiny_bases import tiny_base

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.methods import contract_faults, load_method, method_module, method_names

PAGE = (REPOSITORY / "docs" / "extending.md").read_text()
EXAMPLES = dict(re.findall(r"^```python title=(\w+)\.py\n(.*?)^```$", PAGE, re.M | re.S))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that installs modules as a package with entry points: name -> (kind, source)."""

    def install(modules: dict[str, tuple[str, str]]) -> None:
        folder = tmp_path / "site"
        info = folder / "other-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
        lines = []
        for name, (kind, source) in modules.items():
            (folder / f"other_{name}.py").write_text(source)
            lines += [f"[mlflow_finetune.{kind}s]", f"{name} = other_{name}"]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        monkeypatch.syspath_prepend(folder)
        for name in modules:
            monkeypatch.delitem(sys.modules, f"other_{name}", raising=False)

    return install


@pytest.mark.parametrize("kind", ["adaptation", "objective"])
def test_built_in_methods_satisfy_the_contract(kind):
    for name in method_names(kind):
        assert list(contract_faults(kind, method_module(load_method(kind, name)))) == []


def test_optional_members_have_their_defaults():
    ia3 = load_method("adaptation", "ia3")
    assert (ia3.QUANTIZATION, ia3.MODEL_CODE, ia3.vllm_max_lora_rank(ia3.Options())) == (None, (), None)
    assert ia3.optimizer(None, None, optimizer_class=object, optimizer_kwargs={}, weight_decay=0.0) is None
    assert ia3.meta_options(same := ia3.Options()) is same
    assert ia3.start_options({}, {"key_value_modules": ["k_proj"]}) == {"key_value_modules": ["k_proj"]}
    assert load_method("adaptation", "qlora").QUANTIZATION == "nf4"
    with pytest.raises(AttributeError, match="read-only"):
        ia3.QUANTIZATION = "nf4"


@pytest.mark.train
def test_examples_of_the_documentation_train(package, tmp_path, empty_store):
    package({"layernorm": ("adaptation", EXAMPLES["layernorm"]), "focal": ("objective", EXAMPLES["focal"])})
    assert "layernorm" in method_names("adaptation")
    config = config_for(
        tmp_path,
        tiny_base(tmp_path / "base"),
        adaptation="layernorm",
        objective="focal",
        training={"learning_rate": 1e-2, "save_steps": None},
    )
    ran = run_pipeline(tmp_path / "run", empty_store, config)
    assert ran.reload_error() < 1e-5
    losses = [metric.value for metric in ran.client.get_metric_history(ran.run_id, "train/loss")]
    assert losses[-1] < losses[0]
    assert ran.run.data.tags["finetune.objective"] == "focal"
    config = config.model_copy(update={"start_from": "models:/bot/1", "options": {"gamma": 1.0}})
    continued = run_pipeline(tmp_path / "continued", empty_store, config, store=ran.folder / "mlflow.db")
    first, start = (each.client.get_metric_history(each.run_id, "train/loss") for each in (ran, continued))
    assert start[0].value < first[0].value, "it begins where the first one ended"
    params = [each.run.data.params["options.modules"] for each in (ran, continued)]
    assert params[0] == params[1]


def test_every_fault_of_a_module_is_named_in_one_error(package):
    source = (
        "from mlflow_finetune_plugin.section import Section\n"
        "class Options: pass\n"
        "QUANTIZATION = 'fp4'\n"
        "QUANTIZATIONS = ['nf4']\n"
        "def resolve(options): return options\n"
        "def apply(model, options, *, seed): return model\n"
        "def has_effect(): return True\n"
    )
    package({"broken": ("adaptation", source)})
    with pytest.raises(ConfigError) as raised:
        load_method("adaptation", "broken")
    message = str(raised.value)
    for part in (
        "adaptation 'broken' from other_broken does not satisfy the contract",
        "missing: learning_rate, serving, save",
        "Options is <class 'other_broken.Options'>, not a subclass of mlflow_finetune_plugin.section.Section",
        "resolve must accept (options, base, reasons), but it is (options)",
        "apply must accept (model, options, *, seed, folder), but it is (model, options, *, seed)",
        "has_effect must accept (weights), but it is ()",
        "QUANTIZATION is 'fp4', not 'nf4', 'int8' or None",
        "QUANTIZATIONS is ['nf4'], not a tuple of: nf4, int8",
        "docs/extending.md",
    ):
        assert part in message


def test_a_module_that_cannot_be_imported_is_named(package):
    package({"broken": ("objective", "import no_such_package")})
    with pytest.raises(ConfigError, match="objective 'broken' from other_broken cannot be imported: ModuleNotFound"):
        load_method("objective", "broken")


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ConfigError, match="no adaptation 'lorra'; did you mean lora"):
        load_method("adaptation", "lorra")
