"""Folders and patterns as sources, also in the lists of other tools."""

import pytest
from data_requests import jsonl
from dataset_lists import axolotl, listed, llama_factory

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin.errors import ConfigError


def test_a_run_reads_what_a_list_names(tmp_path):
    rows = [{"ask": f"What is {i}?", "reply": f"It is {i}."} for i in range(40)]
    jsonl(tmp_path / "a.jsonl", rows)
    path = llama_factory(tmp_path, {"file_name": "a.jsonl", "columns": {"prompt": "ask", "response": "reply"}})
    checked = ft.check_data(path)
    assert checked.is_usable, checked.problem
    assert "alpaca: ask -> reply" in checked.text()


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
