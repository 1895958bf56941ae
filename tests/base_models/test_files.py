"""A base model's folder is judged by its files, before anything is loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlflow_finetune_plugin.base_models.files import (
    EMBEDDED_FOLDER,
    check_base_files,
    check_hub_name,
    local_folder,
)
from mlflow_finetune_plugin.errors import BaseModelError

PICKLE = b"\x80\x04K\x01."


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A sound base: a copy of the packaged one."""
    return Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "base"))


def refusal(folder: Path, **more: object) -> str:
    with pytest.raises(BaseModelError) as caught:
        check_base_files(folder, trust_remote_code=bool(more.get("trust_remote_code", False)))
    message = str(caught.value)
    assert str(folder) in message
    assert "fix: " in message
    return message


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(PICKLE)


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/its-base"}))


def adapter_alone(folder: Path) -> None:
    adapter(folder)
    (folder / "config.json").unlink()


def test_sound_base_gives_its_config(base):
    assert check_base_files(base, trust_remote_code=False)["architectures"]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("spoil", "hint"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text('{"a": '), "config.json: not valid JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json: not valid JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json: expected a JSON object"),
        (no_tokenizer, "no tokenizer (tokenizer.json"),
        (
            lambda f: change_config(f, architectures=["BertForMaskedLM"]),
            "not a causal language model (BertForMaskedLM)",
        ),
        (lambda f: change_config(f, architectures="BertForMaskedLM"), "not a causal language model (BertForMaskedLM)"),
        (
            lambda f: change_config(f, architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True),
            "not a causal language model (T5ForConditionalGeneration)",
        ),
        (lambda f: change_config(f, auto_map={"AutoModel": "x.Y"}), "its own Python code (AutoModel)"),
        (only_pickles, "the weights are pickles (pytorch_model.bin)"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights (*.safetensors)"),
        (lambda f: truncate(f / "model.safetensors"), "but its header says"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "not a safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 100), "not a safetensors file"),
        (
            lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
            "not a safetensors file but a Git LFS pointer",
        ),
        (lambda f: write_index(f, json.dumps({"weight_map": {"a": "part-1.safetensors"}})), "part-1.safetensors"),
        (lambda f: write_index(f, '{"weight_map": '), "model.safetensors.index.json: not a valid weight index"),
        (lambda f: write_index(f, "{}"), "model.safetensors.index.json: not a valid weight index"),
        (lambda f: write_index(f, "[]"), "model.safetensors.index.json: not a valid weight index"),
        (adapter, "holds a PEFT adapter (adapter_config.json), not a base; fix: name the adapter's base: org/its-base"),
        (adapter_alone, "holds a PEFT adapter"),
    ],
)
def test_folder_that_cannot_be_trained_says_why(base: Path, spoil: Callable[[Path], object], hint: str):
    spoil(base)
    assert hint in refusal(base)


def test_link_that_leads_nowhere_is_a_missing_weight(base):
    (base / "model.safetensors").unlink()
    (base / "model.safetensors").symlink_to("nowhere")
    assert "names: model.safetensors" in refusal(base)


def test_trusted_code_is_let_in(base):
    change_config(base, auto_map={"AutoModel": "x.Y"})
    assert check_base_files(base, trust_remote_code=True)


def test_max_length_beyond_the_positions_is_refused(base):
    change_config(base, max_position_embeddings=64)
    with pytest.raises(
        BaseModelError, match=r"training\.max_length = 65: beyond the base's 64 positions; fix: use at most 64"
    ):
        check_base_files(base, trust_remote_code=False, max_length=65)
    assert check_base_files(base, trust_remote_code=False, max_length=64)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("{}/bse", "does not exist; did you mean {}/base?"),
        ("{}/base/config.json", "is a file, not a model folder"),
        ("{}/dangling", "is a broken link"),
        ("https://huggingface.co/org/model", "is a URL; fix: give the hub name"),
        ("my model", "neither a folder here nor a hub name"),
        ("a\0b", "neither a folder here nor a hub name"),
        ("b" * 5000, "neither a folder here nor a hub name"),
        ("~nobody/x/y", "does not exist"),
    ],
)
def test_name_that_leads_nowhere_is_refused(tmp_path, base, name, hint):
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(BaseModelError) as caught:
        local_folder(name.format(tmp_path))
    assert hint.format(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_names_that_are_known(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_folder("embedded") == EMBEDDED_FOLDER
    assert local_folder("base") == base
    assert local_folder("org/model") is None
    assert local_folder("gpt2") is None


def test_hub_name_is_refused_only_when_it_cannot_be_had(tmp_path, base, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BaseModelError, match=r"'bese'.*HF_HUB_OFFLINE.*did you mean base\?"):
        check_hub_name("bese")
    with pytest.raises(BaseModelError, match=r"did you mean embedded\?"):
        check_hub_name("embeded")
    (tmp_path / "cache" / "models--org--model").mkdir(parents=True)
    check_hub_name("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    check_hub_name("org/other")
