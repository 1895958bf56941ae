"""Folders and patterns as names for the data files in them."""

import pytest

from mlflow_finetune_plugin.data.sources.folders import data_files_of, set_name
from mlflow_finetune_plugin.errors import DataError


def folder_with(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}\n")
    return folder


def names_of(folder, path):
    return [name.removeprefix(f"{folder}/") for name in data_files_of(str(path))]


def test_a_folder_is_its_data_files_by_name(tmp_path):
    folder_with(tmp_path, "b.jsonl", "a.jsonl.gz", "README.md", "LICENSE", ".hidden.jsonl", "deep/c.jsonl")
    assert names_of(tmp_path, tmp_path) == ["a.jsonl.gz", "b.jsonl"]
    assert names_of(tmp_path, tmp_path / "b.jsonl") == ["b.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("?.csv", ["c.csv"]),
        ("[ac].*", ["a.jsonl", "c.csv"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "deep/d.jsonl"]),
        ("*", ["a.jsonl", "b.jsonl", "c.csv"]),
    ],
)
def test_a_pattern_is_the_files_that_match_it(tmp_path, pattern, names):
    folder_with(tmp_path, "b.jsonl", "a.jsonl", "c.csv", "deep/d.jsonl")
    assert names_of(tmp_path, tmp_path / pattern) == names


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    folder_with(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert names_of(tmp_path, tmp_path / "a[1].jsonl") == ["a[1].jsonl"]


def test_a_pattern_in_a_folder_whose_name_looks_like_one(tmp_path):
    folder_with(tmp_path, "project[1]/a.jsonl", "project1/b.jsonl")
    assert names_of(tmp_path, tmp_path / "project[1]" / "*.jsonl") == ["project[1]/a.jsonl"]
    assert names_of(tmp_path, tmp_path / "project[1-3]" / "*.jsonl") == ["project1/b.jsonl"]


@pytest.mark.parametrize("path", ["hf:org/set:train[:10]", "runs:/abc/x*.jsonl", "models:/m/1/x", "lost.jsonl"])
def test_other_names_stay_as_they_are(path):
    assert data_files_of(path) == [path]


@pytest.mark.parametrize(
    ("names", "path", "words"),
    [
        (["README.md"], "", "the folder has no data files; fix: name a folder with files that end with .jsonl"),
        (["a.jsonl"], "*.csv", "no file matches this pattern; fix: correct it"),
        (["a/b.jsonl"], "*", "no file matches this pattern"),
        (
            ["a.jsonl", "NOTICE.txt"],
            "",
            "files of several formats (.jsonl, .txt), and which of them are data is not clear",
        ),
        (
            ["train.jsonl", "test.jsonl"],
            "",
            "the folder has train.jsonl and, to judge by the names, held-out rows in test.jsonl; fix: name the files",
        ),
    ],
)
def test_a_folder_or_pattern_without_clear_files_is_refused(tmp_path, names, path, words):
    folder_with(tmp_path, *names)
    with pytest.raises(DataError) as caught:
        data_files_of(str(tmp_path / path))
    assert str(caught.value).startswith(f"{tmp_path / path}: ")
    assert words in str(caught.value)


def test_the_advice_for_several_formats_works(tmp_path):
    folder_with(tmp_path, "a.jsonl", "NOTICE.txt")
    with pytest.raises(DataError) as caught:
        data_files_of(str(tmp_path))
    assert names_of(tmp_path, str(caught.value).rpartition("for example ")[2].strip("'")) == ["a.jsonl"]


def test_held_out_rows_alone_are_a_folder_like_others(tmp_path):
    folder_with(tmp_path, "test-0.jsonl", "test-1.jsonl")
    assert len(data_files_of(str(tmp_path))) == 2


@pytest.mark.parametrize(
    ("path", "name"),
    [("/a/fold", "fold"), ("/a/fold/*.jsonl", "fold"), ("/a/x*/b.jsonl", "a"), ("*.jsonl", "data")],
)
def test_the_name_is_that_of_the_folder(path, name):
    assert set_name(path) == name
