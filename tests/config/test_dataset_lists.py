"""Folders, patterns, and LLaMA-Factory's and Axolotl's lists of data sets as sources."""

import json

import pytest
import yaml
from data_requests import jsonl

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin.config.dataset_lists import listed_files
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.errors import ConfigError


def listed(path, **settings):
    files = listed_files(DataFileSettings(path=str(path), **settings))
    return [(file.path, file.layout, file.columns, file.task) for file in files]


def llama_factory(folder, entry, name="mine"):
    (folder / "dataset_info.json").write_text(json.dumps({name: entry, "other": {"file_name": "o.json"}}))
    return f"{folder / 'dataset_info.json'}#{name}"


def axolotl(folder, *entries):
    path = folder / "axolotl.yml"
    path.write_text(yaml.safe_dump({"base_model": "m", "datasets": list(entries)}))
    return path


@pytest.mark.parametrize(
    ("entry", "layout", "columns"),
    [
        ({}, "alpaca", {}),
        ({"columns": {"prompt": "q", "response": "a", "system": None}}, "alpaca", {"instruction": "q", "output": "a"}),
        (
            {"columns": {"prompt": "q", "query": "i", "response": "a"}},
            "alpaca",
            {"instruction": "q", "input": "i", "output": "a"},
        ),
        ({"formatting": "sharegpt"}, "sharegpt", {"conversations": "conversations"}),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "turns", "system": "s", "tools": "tools"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                },
            },
            "messages",
            {"messages": "turns", "system": "s"},
        ),
    ],
)
def test_a_data_set_of_llama_factory(tmp_path, entry, layout, columns):
    path = llama_factory(tmp_path, {"file_name": "a.json", **entry})
    assert listed(path) == [(str(tmp_path / "a.json"), layout, columns, "mine")]


def test_a_data_set_of_llama_factory_on_the_hub(tmp_path):
    path = llama_factory(tmp_path, {"hf_hub_url": "org/set", "subset": "main", "ms_hub_url": "other/set"})
    assert listed(path, task="t") == [("hf:org/set:main:train", "alpaca", {}, "t")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"file_name": "a.json", "ranking": True}, "ranking: preference pairs cannot be used"),
        ({"file_name": "a.json", "columns": {"images": "images"}}, "columns: images: has no equal here"),
        ({"file_name": "a.json", "num_samples": 7}, "num_samples: has no equal here"),
        ({"script_url": "x"}, "script_url: has no equal here"),
        ({"file_name": "a.json", "formatting": "sharegpt", "tags": {"role_tag": "r"}}, "turns with the keys r, value"),
        (
            {"file_name": "a.json", "formatting": "sharegpt", "tags": {"user_tag": "Mensch"}},
            "tags.user_tag = 'Mensch': has no equal here; fix: write these turns as 'user' in the file",
        ),
    ],
)
def test_what_llama_factory_does_and_this_package_does_not(tmp_path, entry, words):
    with pytest.raises(ConfigError, match=words):
        listed(llama_factory(tmp_path, entry))


def test_a_list_without_a_name_or_with_a_wrong_one_names_its_data_sets(tmp_path):
    path = llama_factory(tmp_path, {"file_name": "a.json"})
    for wrong in (path.partition("#")[0], path + "x"):
        with pytest.raises(
            ConfigError, match=r"name one of its data sets, dataset_info\.json#NAME; fix: one of: mine, other"
        ):
            listed(wrong)


def test_the_data_sets_of_an_axolotl_configuration(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        jsonl(tmp_path / name, [])
    path = axolotl(
        tmp_path,
        {"path": "a.jsonl", "type": "alpaca", "ds_type": "json"},
        {
            "path": "json",
            "data_files": ["b.jsonl", "c.jsonl"],
            "type": "chat_template",
            "field_messages": "turns",
            "roles_to_train": ["assistant"],
        },
        {"path": "org/set", "name": "main", "split": "test", "type": "sharegpt"},
        {"path": "a.jsonl", "type": "completion", "field": "body"},
        {"path": "a.jsonl", "type": {"field_instruction": "q", "field_output": "a", "format": None}},
    )
    assert listed(path) == [
        (str(tmp_path / "a.jsonl"), "alpaca", None, None),
        (str(tmp_path / "b.jsonl"), "messages", {"messages": "turns"}, None),
        (str(tmp_path / "c.jsonl"), "messages", {"messages": "turns"}, None),
        ("hf:org/set:main:test", "sharegpt", {"conversations": "conversations"}, None),
        (str(tmp_path / "a.jsonl"), "text", {"text": "body"}, None),
        (str(tmp_path / "a.jsonl"), "alpaca", {"instruction": "q", "output": "a"}, None),
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "org/set", "type": "orpo.chat_template"}, "type = 'orpo.chat_template': has no equal here"),
        (
            {"path": "org/set", "type": {"field_instruction": "q", "format": "[INST] {instruction}"}},
            r"type\.format: has no equal here; fix: remove it, .* with data\.prompt_template",
        ),
        (
            {"path": "org/set", "type": "pygmalion"},
            "fix: use alpaca, completion, chat_template, sharegpt, or an object",
        ),
        ({"path": "org/set", "type": "chat_template", "roles_to_train": ["user"]}, "roles_to_train: has no equal here"),
        ({"path": "lost.jsonl", "type": "alpaca"}, r"the file lost\.jsonl does not exist"),
        ({"type": "alpaca"}, "has no path"),
    ],
)
def test_what_axolotl_does_and_this_package_does_not(tmp_path, entry, words):
    with pytest.raises(ConfigError, match=words):
        listed(axolotl(tmp_path, entry))


def test_a_run_reads_what_a_list_names(tmp_path):
    rows = [{"ask": f"What is {i}?", "reply": f"It is {i}."} for i in range(40)]
    jsonl(tmp_path / "a.jsonl", rows)
    path = llama_factory(tmp_path, {"file_name": "a.jsonl", "columns": {"prompt": "ask", "response": "reply"}})
    checked = ft.check_data(path)
    assert checked.is_usable, checked.problem
    assert "alpaca: ask -> reply" in checked.text()


# folders and patterns ------------------------------------------------------------------------------------------------


def shards(folder):
    """Write three files with ten rows each."""
    folder.mkdir()
    for part in range(3):
        rows = [{"prompt": f"What is {part}{i}?", "completion": f"It is {part}{i}."} for i in range(10)]
        jsonl(folder / f"p{part}.jsonl", rows)
    return folder


@pytest.mark.parametrize("name", ["", "*.jsonl", "p[0-2].*"])
def test_a_folder_is_one_task_of_several_files(tmp_path, name):
    path = shards(tmp_path / "fold") / name
    files = [str(tmp_path / "fold" / f"p{part}.jsonl") for part in range(3)]
    assert listed(path) == [(file, None, None, "fold") for file in files]
    assert listed(path, task="t", layout="alpaca") == [(file, "alpaca", None, "t") for file in files]


def test_lists_of_other_tools_may_name_folders_and_patterns(tmp_path):
    files = sorted(map(str, shards(tmp_path / "fold").iterdir()))
    for name in ("fold", "fold/*.jsonl"):
        path = llama_factory(tmp_path, {"file_name": name})
        assert [file[0] for file in listed(path)] == files
        path = axolotl(tmp_path, {"path": name, "type": "alpaca"})
        assert [file[0] for file in listed(path)] == files
    path = axolotl(tmp_path, {"path": "json", "data_files": "fold/p[12].jsonl", "type": "alpaca"})
    assert [file[0] for file in listed(path)] == files[1:]
    (tmp_path / "empty").mkdir()
    path = axolotl(tmp_path, {"path": "empty", "type": "alpaca"})
    with pytest.raises(ConfigError, match="the folder has no data files"):
        listed(path)


def test_a_folder_is_checked_and_is_read_by_a_recipe(tmp_path, monkeypatch):
    shards(tmp_path / "fold")
    for source in (tmp_path / "fold", tmp_path / "fold" / "*.jsonl"):
        checked = ft.check_data(source)
        assert checked.is_usable, checked.problem
        assert [file.rows_read for file in checked.report.files] == [10, 10, 10]
        assert {file.task for file in checked.report.files} == {"fold"}
    project = tmp_path / "project"
    project.mkdir()
    (project / "finetune.yaml").write_text("data: {train: ../fold/*.jsonl, eval: [{path: ../fold/p0.jsonl}]}\n")
    assert [file.rows_read for file in ft.check_data(project).report.files] == [10, 10, 10, 10]
    monkeypatch.chdir(tmp_path)
    assert len(ft.check_data("fold").report.files) == 3
    with pytest.raises(ConfigError, match="no file matches this pattern"):
        ft.check_data("fold/*.csv")
