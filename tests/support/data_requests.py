"""Small data files, and requests to prepare them."""

import json

from mlflow_finetune_plugin.data import DataFile, DataRequest


def jsonl(path, rows):
    with path.open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def pairs(count, start=0):
    return [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(start, start + count)]


def request(train, eval=0.2, **options):
    files = train if isinstance(train, tuple) else (DataFile(train, "task"),)
    options.setdefault("overlength", "error")
    options.setdefault("max_length", 512)
    options.setdefault("max_eval_rows", None)
    options.setdefault("seed", 0)
    options.setdefault("columns", {})
    return DataRequest(files, eval, layout="auto", **options)


def train_texts(prepared, tokenizer):
    return [tokenizer.decode(ids) for ids in prepared.train["input_ids"]]


def held_out(tmp_path):
    return (DataFile(jsonl(tmp_path / "eval.jsonl", pairs(1, 900)), "t"),)
