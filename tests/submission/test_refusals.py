"""A bad request is one clear error, says what, where and how to fix it, and leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys

import pytest
from conftest import ROWS, write_rows
from submission_requests import DATA, assert_nothing_left, assert_tells

# entry point, parameters, backend config --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        ({"entry_point": "lorra"}, ["no entry point 'lorra'", "did you mean lora?", "pick one of: lora"]),
        ({"entry_point": "x" * 5000}, ["no entry point 'xxx", "pick one of"]),
        ({"backend_config": {"ENV_MANAGER": "virtualenv"}}, ["--env-manager virtualenv", "whose torch", "local"]),
        ({"backend_config": {"ENV_MANAGER": "conda"}}, ["--env-manager conda", "fix: --env-manager local"]),
        ({"backend_config": {"ENV_MANAGER": "uv"}}, ["--env-manager uv", "fix: --env-manager local"]),
        ({"backend_config": {"lancher": "local"}}, ["-c lancher = 'local'", "known: launcher, detach"]),
        ({"backend_config": {"launcher": "slurm"}}, ["no launcher 'slurm'", "pick one of: local"]),
        ({"backend_config": {"rank": 8}}, ["-c rank = 8", "hyperparameters go to -P"]),
        ({"backend_config": {"detach": "yes"}}, ["-c detach = 'yes'", "expected true or false"]),
    ],
)
def test_unknown_entry_point_or_backend_config_is_refused(refused, more, parts):
    assert_tells(refused(**more), *parts)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"rnk": "3"}, ["-P rnk: unknown key rnk (= 3)", "did you mean rank?"]),
        ({"rank": "big"}, ["-P rank: options.rank = 'big'", "expected integer at least 1 or auto"]),
        ({"rank": "1\n2"}, ["options.rank = '1 2'", "expected integer at least 1 or auto"]),
        ({"rank": "9" * 100_000}, ["options.rank = '999", "(100,002 characters)"]),
        ({"rank": "!!int abc"}, ["options.rank = '!!int abc'"]),
        ({"rank": ""}, ["options.rank = None", "expected integer at least 1 or auto"]),
        ({"k" * 9000: "1"}, ["-P kkk", "unknown key kkk"]),
        ({"learning_rate": "-1"}, ["training.learning_rate = -1", "above 0"]),
        ({"training": "3"}, ["-P training: unknown key training"]),
        ({"rank": "8", "options.rank": "16"}, ["-P options.rank: sets options.rank, as does -P rank"]),
        ({"adaptation": "lorra"}, ["no adaptation 'lorra'", "did you mean lora?"]),
        ({"metrics": "reward"}, ["eval.metrics: reward needs answers that are scored", "options.rewards"]),
        ({"metrics": "exact_mtch"}, ["'exact_mtch' is not a known metric", "did you mean 'exact_match'?"]),
        ({"register": "a/b"}, ["register.name = 'a/b'", "may not contain '/'"]),
        ({"register": "a#b"}, ["register.name = 'a#b'", "may not contain '#'"]),
        ({"learning_rate": ".inf"}, ["training.learning_rate = inf", "expected number above 0"]),
        ({"learning_rate": "1e999"}, ["training.learning_rate = inf", "expected number above 0"]),
        ({"seed": str(2**32)}, ["training.seed = 4294967296", "below 4294967296"]),
        (
            {"data": "[train.jsonl, 3]"},
            [
                "data.train.1 = 3",
                "expected a path or {path, task, weight, instruction, layout, columns, ignore, prompt_template, tags}",
            ],
        ),
        ({"register": "base"}, ["register.name = 'base'", "reserved"]),
        ({"max_length": "100000"}, ["training.max_length = 100000", "positions", "fix: use at most"]),
        ({"base_model": "no/such-model"}, ["no/such-model"]),
        ({"base_model": "embedded", "revision": "main"}, ["base_model.revision = 'main'", "has no revisions"]),
    ],
)
def test_wrong_parameter_is_refused(refused, parameters, parts):
    assert_tells(refused({**DATA, **parameters}), *parts)


def test_every_fault_comes_in_one_message(refused):
    message = refused({"data": "trian.jsonl", "base_model": "./nope", "forgetting": "nope.txt", "chat_template": "."})
    assert_tells(message, "4 problems", "trian.jsonl", "./nope".lstrip("./"), "nope.txt: no such file", "is a folder")


def test_faults_of_the_request_do_not_hide_those_of_the_files(refused):
    wrong = {"rnk": "3", "learning_rate": "-1", "data": "trian.jsonl", "base_model": "./nope", "overlength": "cut"}
    parts = [
        "-P rnk: unknown key",
        "training.learning_rate = -1",
        "trian.jsonl: no such file",
        "nope",
        "data.overlength",
    ]
    assert_tells(refused(wrong), "5 problems", *parts)


def test_unknown_method_does_not_make_its_options_unknown(refused):
    message = refused({**DATA, "adaptation": "lorra", "rank": "8"})
    assert_tells(message, "1 problem", "no adaptation 'lorra'")


@pytest.mark.parametrize(
    ("alias", "value", "section", "key"),
    [
        ("lr", "0.5", "training", "learning_rate"),
        ("epochs", "7", "training", "num_train_epochs"),
        ("batch_size", "3", "training", "per_device_train_batch_size"),
        ("steps", "9", "training", "max_steps"),
    ],
)
def test_short_names_of_parameters_are_understood(desk, alias, value, section, key):
    from mlflow_finetune_plugin.config.run_config import load_config

    config = load_config(desk.path, "lora", {**DATA, alias: value, "r": "4"}, caller=desk.path)
    assert getattr(getattr(config, section), key) == float(value)
    assert config.options["rank"] == 4


def test_short_name_for_another_method_or_beside_the_full_name_is_refused(desk, refused):
    assert_tells(refused({**DATA, "lr": "1", "learning_rate": "2"}), "sets training.learning_rate, as does -P lr")
    (desk.path / "finetune.yaml").write_text("training: {batch_size: 3}")
    assert_tells(refused(DATA), "training.batch_size", "did you mean training.per_device_train_batch_size?")


@pytest.mark.parametrize("name", ["2024", "7e12", "0123", "true", "2024-01-31"])
def test_text_that_looks_like_a_number_stays_text(desk, ask, name):
    from mlflow_finetune_plugin.config.run_config import load_config

    config = load_config(desk.path, "lora", {**DATA, "register": name, "revision": name}, caller=desk.path)
    assert (config.register_as.name, config.base_model.revision) == (name, name)


@pytest.mark.parametrize(
    ("parameters", "parts"),
    [
        ({"eval_data": "train.jsonl"}, ["no model; fix: -P model=models:/NAME/VERSION"]),
        ({"model": "models:/bot/1"}, ["no held-out rows; fix: -P eval_data=FILE"]),
        ({"model": "models:/bot/1", "eval_data": "train.jsonl"}, ["models:/bot/1"]),
        (
            {"model": "bot/latest", "eval_data": "train.jsonl"},
            ["'bot/latest' is not a valid model name", "NAME/VERSION"],
        ),
        ({"model": "bot", "eval_data": "train.jsonl"}, ["Registered Model with name=bot not found"]),
        ({"model": "models:/bot", "eval_data": "train.jsonl"}, ["Logged model with ID 'bot' not found"]),
        ({"model": "models:/bot/1", "eval_data": "gone.jsonl"}, ["no such file"]),
        ({"model": "models:/bot/1", "eval_data": "train.jsonl", "rank": "3"}, ["-P rank"]),
        ({"model": "models:/bot/1", "eval_data": "train.jsonl", "resume": "1"}, ["is not for this entry point"]),
        (
            {"model": "models:/bot/1", "eval_data": "train.jsonl", "metrics": "reward"},
            ["eval.metrics: reward needs answers that are scored", "-P reward=FILE.py:FUNCTION"],
        ),
        (
            {"model": "models:/bot/1", "eval_data": "train.jsonl", "metrics": "reward/shrt", "reward": "r.py:short"},
            ["reward/shrt is not a part of options.rewards", "pick one of: reward, reward/short"],
        ),
        (
            {
                "model": "models:/bot/1",
                "eval_data": "train.jsonl",
                "metrics": "preference_accuracy",
                "reward": "r.py:short",
            },
            ["preference_accuracy compares the answers of pairs", "remove it, or options.rewards"],
        ),
        (
            {"model": "models:/bot/1", "eval_data": "train.jsonl", "reward": "gone.py:short"},
            ["options.rewards[0].python", "gone.py"],
        ),
        (
            {"model": "models:/bot/1", "eval_data": "train.jsonl", "reward": "{pyton: r.py}"},
            ["-P reward", "options.rewards.0.pyton"],
        ),
        ({"model": "models:/bot/1", "eval_data": "texts.jsonl", "reward": "r.py:short"}, ["texts.jsonl", "prompt"]),
    ],
)
def test_evaluation_that_cannot_be_made_is_refused(desk, refused, parameters, parts):
    (desk.path / "r.py").write_text("def short(completion):\n    return -len(completion)\n")
    write_rows(desk.path / "texts.jsonl", [{"text": "A text."}, {"text": "Another text."}])
    assert_tells(refused(parameters, entry_point="evaluate"), *parts)


# files ------------------------------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("trian.jsonl", ["trian.jsonl: no such file", "did you mean", "train.jsonl?"]),
        ("nowhere/train.jsonl", ["no such file", "nowhere does not exist"]),
        (
            "folder.jsonl",
            ["folder.jsonl: the folder has no data files", "name a folder with files that end with .jsonl"],
        ),
        ("dangling.jsonl", ["dangling.jsonl: no such file"]),
        ("empty.jsonl", ["empty.jsonl: the file is empty"]),
        ("binary.jsonl", ["binary.jsonl: not a text file"]),
        ("half.jsonl", ["half.jsonl, line 3: the last line is incomplete"]),
        ("short.jsonl.gz", ["short.jsonl.gz: the gzip data ends too early"]),
        ("false.jsonl.gz", ["false.jsonl.gz: not a valid gzip file"]),
        ("odd.jsonl", ["odd.jsonl: the columns a, b fit no known layout", "data.columns"]),
        ("data.bin", ["unknown file format", ".jsonl"]),
        ("s3://bucket/train.jsonl", ["'s3://bucket/train.jsonl': is a URL", "fix: download it"]),
        ("https://host/train.jsonl", ["'https://host/train.jsonl': is a URL", "fix: download it"]),
        ("x" * 5000, ["cannot be a file name"]),
        ("a\0b", ["cannot be a file name"]),
    ],
)
@pytest.mark.parametrize("key", ["data", "eval_data"])
def test_unusable_data_file_is_refused(desk, refused, key, path, parts):
    folder = desk.path
    (folder / "folder.jsonl").mkdir()
    (folder / "dangling.jsonl").symlink_to("nowhere")
    (folder / "empty.jsonl").write_text("")
    (folder / "binary.jsonl").write_bytes(bytes(range(256)) * 20)
    (folder / "half.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[1]) + '\n{"prompt": "ca')
    (folder / "short.jsonl.gz").write_bytes(gzip.compress(os.urandom(4000).hex().encode())[:-100])
    (folder / "false.jsonl.gz").write_text("no gzip")
    write_rows(folder / "odd.jsonl", [{"a": 1, "b": 2}])
    (folder / "data.bin").write_text("x")
    message = refused({**DATA, key: path})
    assert_tells(message, "1 problem", *parts)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("key", "parts"),
    [("metrics", ["eval.metrics"]), ("chat_template", ["data.chat_template"]), ("forgetting", ["eval.forgetting"])],
)
@pytest.mark.parametrize(
    ("name", "fault"),
    [("none.py", "no such file"), ("folder.py", "is a folder"), ("empty.py", "is empty"), ("latin.py", "not UTF-8")],
)
def test_unusable_side_file_is_refused(desk, refused, key, parts, name, fault):
    (desk.path / "folder.py").mkdir()
    (desk.path / "empty.py").write_text(" \n")
    (desk.path / "latin.py").write_bytes("# Größe".encode("latin-1"))
    assert_tells(refused({**DATA, key: name}), *parts, name, fault)


def bomb() -> str:
    """Nine lines, each a list of nine times the line before: 400 million values."""
    lines = ["a0: &a0 [" + ", ".join(["x"] * 9) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda path: path.mkdir(), ["finetune.yaml: cannot be read: Is a directory"]),
        (lambda path: path.symlink_to("nowhere"), ["finetune.yaml: cannot be read: No such file"]),
        (lambda path: path.write_text("data: [a"), ["finetune.yaml:1: not valid YAML"]),
        (lambda path: path.write_bytes(b"data: \xff"), ["finetune.yaml: not UTF-8"]),
        (lambda path: path.write_text("data: &a [*a]"), ["an anchor (&name) holds itself"]),
        (lambda path: path.write_text(bomb()), ["values with its anchors written out, at most 100,000"]),
        (lambda path: path.write_text("data: " + "[" * 150 + "]" * 150), ["values are nested", "at most 100"]),
        (lambda path: path.write_text("training: 3"), ["finetune.yaml:1: training = 3", "expected keys such as"]),
        (
            lambda path: path.with_suffix(".yml").write_text("data: x"),
            ["no training data", "rename it to finetune.yaml"],
        ),
    ],
)
def test_unusable_recipe_is_refused(desk, refused, make, parts):
    make(desk.path / "finetune.yaml")
    assert_tells(refused({}), *parts)


@pytest.mark.process
def test_missing_extra_is_named(desk):
    """In a process of its own where ``peft`` cannot be found, as on a machine that never installed it."""
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "peft" else found(name, package)
from mlflow_finetune_plugin.cli import main
sys.exit(main(["run", ".", "-e", "lora", "-P", "data=train.jsonl"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=desk.path, env=desk.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "training needs peft; fix: pip install 'mlflow-finetune[train]'" in done.stderr
    assert "Traceback" not in done.stderr
    assert_nothing_left(desk)
