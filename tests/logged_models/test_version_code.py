"""Code that somebody put into a registered version does not run, wherever it lies, unless the user allows it."""

import hashlib
import json
import py_compile
import shutil
from importlib.util import cache_from_source

import pytest
import yaml
from served_models import registry_of_bot

from mlflow_finetune_plugin import api
from mlflow_finetune_plugin.errors import ReloadError
from mlflow_finetune_plugin.logged_models.loading import load_logged
from mlflow_finetune_plugin.logged_models.version_code import EARLIER_CODE, LOADER, PICTURE_CODE, SHARED_CODE
from mlflow_finetune_plugin.methods import load_method, method_names

pytestmark = pytest.mark.store


@pytest.fixture(scope="module")
def registry(tmp_path_factory, empty_store):
    with registry_of_bot(tmp_path_factory.mktemp("registry"), empty_store, versions=1) as maker:
        yield maker


@pytest.fixture
def version(tmp_path, registry):
    """The files of bot/1, put back as they were afterwards."""
    folder = registry.artifacts("bot", "1").parent
    shutil.copytree(folder, tmp_path / "before")
    yield folder
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "before", folder)


def put_code(path, marker):
    """Prepend a line that leaves a trace to a Python file, which otherwise works as before."""
    before = path.read_text() if path.exists() else ""
    path.write_text(f"open({str(marker)!r}, 'w').close()\n" + before)


def change_loader(version, marker):
    put_code(version / "pyfunc_loader.py", marker)


def change_code_beside_it(version, marker):
    put_code(version / "code" / "weights_digest.py", marker)


def add_module(version, marker):
    put_code(version / "code" / "safetensors.py", marker)


def add_package(version, marker):
    (version / "code" / "peft").mkdir()
    put_code(version / "code" / "peft" / "__init__.py", marker)


def link_the_loader(version, marker):
    put_code(marker.with_name("linked.py"), marker)
    (version / "pyfunc_loader.py").unlink()
    (version / "pyfunc_loader.py").symlink_to(marker.with_name("linked.py"))


def name_another_loader(version, marker):
    shutil.copy(version / "pyfunc_loader.py", version / "other.py")
    put_code(version / "other.py", marker)
    change_flavor(version, model_code_path="/x/other.py")


def name_another_module(version, marker):
    put_code(version / "code" / "helper.py", marker)
    change_flavor(version, loader_module="helper")


def name_another_code_folder(version, marker):
    shutil.copytree(version / "code", version / "more")
    put_code(version / "more" / "weights_digest.py", marker)
    change_flavor(version, code="more")


def name_a_pickle(version, marker):
    change_flavor(version, python_model="python_model.pkl")


def import_a_module(version, marker):
    change_card(version, imports=["antigravity"])


def name_another_card(version, marker):
    shutil.copy(version / "artifacts" / "finetune.json", version / "artifacts" / "other.json")
    flavor = yaml.safe_load((version / "MLmodel").read_text())["flavors"]["python_function"]
    artifacts = {**flavor["artifacts"], "card": {"path": "artifacts/other.json", "uri": "x"}}
    change_flavor(version, artifacts=artifacts)


def use_a_base_with_code(version, marker):
    card = json.loads((version / "artifacts" / "finetune.json").read_text())
    change_card(version, base_model={**card["base_model"], "trust_remote_code": True})


def change_flavor(version, **values):
    content = yaml.safe_load((version / "MLmodel").read_text())
    content["flavors"]["python_function"].update(values)
    (version / "MLmodel").write_text(yaml.safe_dump(content))


def change_card(version, **values):
    path = version / "artifacts" / "finetune.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


CHANGES = [
    (change_loader, "pyfunc_loader.py has an unknown digest"),
    (change_code_beside_it, "code/weights_digest.py has an unknown digest"),
    (add_module, "code/safetensors.py has an unknown digest"),
    (add_package, "code/peft is not a regular file"),
    (link_the_loader, "pyfunc_loader.py is not a regular file"),
    (name_another_loader, "MLmodel names the loader 'other.py'"),
    (name_another_module, "MLmodel has loader_module = 'helper'"),
    (name_another_code_folder, "MLmodel has code = 'more'"),
    (name_a_pickle, "MLmodel has python_model = 'python_model.pkl'"),
    (import_a_module, "imports 'antigravity'"),
    (name_another_card, "MLmodel has card at 'artifacts/other.json'"),
    (use_a_base_with_code, "runs the Python code of its repository"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[change.__name__ for change, _ in CHANGES])
def test_unknown_code_in_a_version_is_refused_before_it_runs(version, tmp_path, change, message):
    marker = tmp_path / "it-ran"
    change(version, marker)
    with pytest.raises(ReloadError, match=r"models:/bot/1 was not loaded.*--trust-code") as refusal:
        load_logged("models:/bot/1")
    assert message in str(refusal.value)
    assert not marker.exists()


def test_export_refuses_unknown_code_and_trust_code_allows_it(version, tmp_path):
    marker = tmp_path / "it-ran"
    change_loader(version, marker)
    with pytest.raises(ReloadError, match=r"pyfunc_loader\.py has an unknown digest"):
        api.export("bot/1", merged=tmp_path / "merged")
    assert not marker.exists()
    assert not (tmp_path / "merged").exists()
    assert api.export("bot/1", merged=tmp_path / "merged", trust_code=True).max_nats < 1e-3
    assert marker.exists()


def test_bytecode_beside_known_code_does_not_run(version, tmp_path):
    marker = tmp_path / "it-ran"
    evil = tmp_path / "evil.py"
    shutil.copy(version / "pyfunc_loader.py", evil)
    put_code(evil, marker)
    cache = cache_from_source(str(version / "pyfunc_loader.py"))
    py_compile.compile(str(evil), cache, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    load_logged("models:/bot/1")
    assert not marker.exists()


def test_a_version_of_this_package_loads_and_answers(version):
    assert load_logged("models:/bot/1").card["adaptation"] == "lora"


def test_every_file_that_travels_has_its_digest_on_record():
    installed = [path for name in method_names("adaptation") for path in load_method("adaptation", name).MODEL_CODE]
    for path in (LOADER, *SHARED_CODE, *PICTURE_CODE, *installed):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in EARLIER_CODE[path.name], (
            f"add the digest of {path.name}"
        )
