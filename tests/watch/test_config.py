"""``-e watch``: what is checked before there is a run."""

import pytest

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.watch.config import load_watch_config

ROWS = "ask,say\nwho?,me\n"


def load(folder, recipe, data="new.csv"):
    (folder / "finetune.yaml").write_text(recipe)
    return load_watch_config(folder, "watch", {"model": "bot", "data": data}, caller=folder)


def test_columns_that_only_the_training_knows_are_not_asked_of_the_recipe(tmp_path):
    (tmp_path / "new.csv").write_text(ROWS)
    assert load(tmp_path, "data: old.csv\n").data == str(tmp_path / "new.csv")


def test_columns_that_the_recipe_names_are_checked(tmp_path):
    (tmp_path / "new.csv").write_text(ROWS)
    load(tmp_path, "data: {columns: {prompt: ask, completion: say}}\n")
    with pytest.raises(ConfigError, match="the file has no column 'question'"):
        load(tmp_path, "data: {columns: {prompt: question, completion: say}}\n")


def test_a_file_that_cannot_be_read_is_reported_before_the_run(tmp_path):
    with pytest.raises(ConfigError, match=r"gone\.csv"):
        load(tmp_path, "data: old.csv\n", "gone.csv")
