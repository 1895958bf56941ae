"""The commands of ``mlflow-finetune``, as a shell runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY

from mlflow_finetune_plugin.cli.main import SECTIONS, main
from mlflow_finetune_plugin.config.run_config import load_config


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str], desk):  # type: ignore[no-untyped-def]
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def say(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        return (code, *capsys.readouterr())

    return say


def test_help_groups_every_command_by_task(say):
    code, out, _ = say("--help")
    assert code == 0
    for section, commands in SECTIONS.items():
        listed = out.partition(f"\n{section}:\n")[2].partition("\n\n")[0]
        assert all(f"  {command} " in listed for command in commands), section


@pytest.mark.process
@pytest.mark.parametrize("command", [name for commands in SECTIONS.values() for name in commands])
def test_every_command_has_help_with_a_first_sentence(say, command):
    code, out, _ = say(command, "--help")
    assert code == 0
    assert out.startswith("Usage: mlflow-finetune")
    assert ". " in out or ".\n" in out


def test_an_unknown_command_names_the_nearest(say):
    code, _, error = say("promot")
    assert code == 2
    assert "did you mean promote?" in error


def test_methods_lists_entry_points_and_options(say):
    code, out, _ = say("methods")
    assert code == 0
    for word in (
        "entry points (-e)",
        "lora",
        "adaptations (-P adaptation=)",
        "rank",
        "objectives (-P objective=)",
        "sft",
    ):
        assert word in out


def test_schema_accepts_the_recipe_and_refuses_an_unknown_key(say):
    code, out, _ = say("schema")
    assert code == 0
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    recipe = yaml.safe_load((REPOSITORY / "recipes" / "quickstart" / "finetune.yaml").read_text())
    jsonschema.validate(recipe, schema)
    for bad in ({**recipe, "trainig": {}}, {**recipe, "options": {"rnk": 3}}, {**recipe, "options": {"rank": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def test_init_copies_a_recipe_under_a_new_name(say, desk):
    code, out, _ = say("init", "my-bot")
    assert code == 0
    assert "mlflow run my-bot -b finetune -e lora" in out
    config = load_config(desk.path / "my-bot", "lora", {}, caller=desk.path)
    assert config.register_as.name == "my-bot"
    for file in (*config.data.train, *config.data.eval):
        assert (desk.path / "my-bot" / file.path).is_file()
    assert not list((desk.path / "my-bot").rglob("*.pyc"))


def test_init_copies_any_recipe_with_its_command_and_its_variant_for_gpus(say, desk):
    code, out, _ = say("init", "extract", "--recipe", "structured_extraction")
    assert code == 0
    assert "mlflow run extract -b finetune -e qlora" in out
    for folder in ("extract", "extract/gpu"):
        assert load_config(desk.path / folder, "qlora", {}, caller=desk.path).register_as.name == "extract"


def test_init_renames_the_versions_that_a_chain_hands_on(say, desk):
    assert say("init", "my-bot", "--recipe", "rlhf")[0] == 0
    for folder, entry_point, name in (("sft", "lora", "my-bot-sft"), ("reward", "reward", "my-bot-reward")):
        config = load_config(desk.path / "my-bot" / folder, entry_point, {}, caller=desk.path)
        assert config.register_as.name == name
    config = load_config(desk.path / "my-bot", "rloo", {}, caller=desk.path)
    assert config.register_as.name == "my-bot"
    assert config.start_from == "models:/my-bot-sft@champion"
    assert config.options["rewards"][0]["model"] == "models:/my-bot-reward@champion"


@pytest.mark.parametrize("name", ["2024", "true", "ü.bot", "new/deep/bot"])
def test_init_writes_a_name_that_reads_back(say, desk, name):
    assert say("init", name)[0] == 0
    config = load_config(desk.path / name, "lora", {}, caller=desk.path)
    assert config.register_as.name == name.rpartition("/")[2]


def test_init_takes_the_folder_it_stands_in(say, desk, monkeypatch):
    (desk.path / "bot").mkdir()
    monkeypatch.chdir(desk.path / "bot")
    assert say("init", ".")[0] == 0
    assert load_config(desk.path / "bot", "lora", {}, caller=desk.path).register_as.name == "bot"


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["full"], "full: exists and is not empty; fix: choose another name"),
        (["train.jsonl"], "train.jsonl: exists and is not empty"),
        (["new", "--recipe", "quikstart"], "no recipe 'quikstart'; did you mean quickstart?"),
        (["a: b"], "may not contain ':'"),
        (["base"], "the name is reserved"),
    ],
)
def test_init_refuses_and_writes_nothing(say, desk, arguments, hint):
    (desk.path / "full").mkdir()
    (desk.path / "full" / "mine.txt").write_text("mine")
    before = sorted(desk.path.rglob("*"))
    code, _, error = say("init", *arguments)
    assert code == 2
    assert hint in error
    assert sorted(desk.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["-P", "rank"], "-P rank: expected NAME=VALUE"),
        (["-P", "=3"], "-P =3: expected NAME=VALUE"),
        (["-P", "rank=3", "-P", "rank=4"], "-P rank: given twice"),
        (["-P", "rnk=3"], "did you mean rank?"),
        (["-e", "lorra"], "did you mean lora?"),
        (["-c", "none.json"], "-c none.json: cannot be read: No such file"),
        (["-c", "{detach"], "-c {detach: not JSON"),
        (["-c", "[1]"], "-c [1]: expected a JSON object"),
        (["-c", '{"rank": 8}'], "hyperparameters go to -P"),
        (["nowhere"], "project 'nowhere': no such folder"),
        (["--version", "v1"], "in no git repository"),
    ],
)
def test_bad_run_is_exit_code_2_and_one_message(say, desk, arguments, hint):
    code, out, error = say("run", "-e", "lora", "-P", "data=train.jsonl", *arguments)
    assert code == 2
    assert hint in error
    assert out == ""
    assert error.startswith("mlflow-finetune: ")
    assert desk.runs() == []


@pytest.mark.process
def test_ctrl_c_of_run_is_exit_code_130_without_a_traceback(desk, own_project):
    process = desk.start(["mlflow_finetune_plugin.cli", "run", str(own_project("sleep 300"))])
    desk.job()
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert desk.ended_run().info.status == "KILLED"


@pytest.mark.process
def test_doctor_of_a_clean_machine_is_content(desk):
    result = desk.cli("doctor")
    assert result.returncode == 0, result.stdout
    for word in ("ok   torch", "trains on:", "no run left behind", "no run without a sign of life"):
        assert word in result.stdout


@pytest.mark.process
def test_doctor_creates_no_store(desk, tmp_path):
    result = desk.cli("doctor", MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/absent.db")
    assert "does not exist yet; the first run creates it" in result.stdout
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.process
def test_doctor_tells_a_store_that_is_away_without_its_password(desk):
    result = desk.cli("doctor", MLFLOW_TRACKING_URI="http://me:secret@127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert result.returncode == 1
    assert "FIX  tracking server http://127.0.0.1:9" in result.stdout
    assert "secret" not in result.stdout
    assert "Traceback" not in result.stdout


@pytest.mark.process
def test_a_command_pays_only_for_what_it_needs():
    """The libraries that some command needs are imported by that command."""
    heavy = "{'torch', 'transformers', 'mlflow', 'scipy', 'matplotlib', 'pandas', 'datasets'}"
    code = f"import sys; import mlflow_finetune_plugin.cli; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
