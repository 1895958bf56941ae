"""Lists of data sets of other tools, and what they stand for."""

import json

import yaml

from mlflow_finetune_plugin.config.dataset_lists import listed_files
from mlflow_finetune_plugin.config.sections import DataFileSettings


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
