"""Where a project comes from, and what its MLproject says. Real git repositories, made here."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlflow_finetune_plugin.errors import ProjectError
from mlflow_finetune_plugin.submission.mlproject import FinetuneCommand, OwnCommand, mlproject_entry
from mlflow_finetune_plugin.submission.project import open_project


@dataclass(frozen=True)
class Repository:
    """A repository with a project in ``sub``: tag v1 says one, branch feature says feature, main says two."""

    path: Path
    first: str

    def git(self, *arguments: str) -> str:
        identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=self.path, check=True, capture_output=True, text=True).stdout.strip()

    def write(self, word: str) -> None:
        (self.path / "sub").mkdir(exist_ok=True)
        (self.path / "sub" / "MLproject").write_text(f"entry_points: {{main: {{command: 'echo {word}'}}}}\n")
        (self.path / "word.txt").write_text(word)
        self.git("add", ".")
        self.git("commit", "-qm", word)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    path = tmp_path / "repo"
    path.mkdir()
    repo = Repository(path, "")
    repo.git("init", "-qb", "main")
    repo.write("one")
    repo.git("tag", "v1")
    first = repo.git("rev-parse", "HEAD")
    repo.git("checkout", "-qb", "feature")
    repo.write("feature")
    repo.git("checkout", "-q", "main")
    repo.write("two")
    return Repository(path, first)


@pytest.mark.parametrize(
    ("version", "word"), [("v1", "one"), ("feature", "feature"), ("main", "two"), ("HEAD~1", "one")]
)
@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_version_is_fetched_and_the_checkout_stays(tmp_path, repository, version, word, form):
    (repository.path / "word.txt").write_text("not committed")
    project = open_project(form.format(repository.path), version, tmp_path / "fetched")
    assert (project.path / "word.txt").read_text() == word
    assert project.commit == repository.git("rev-parse", f"{version}^{{commit}}")
    assert project.branch == (version if version in ("feature", "main") else None)
    assert project.repository == str(repository.path)
    assert project.source == str(repository.path)
    assert repository.git("symbolic-ref", "--short", "HEAD") == "main"
    assert (repository.path / "word.txt").read_text() == "not committed"


@pytest.mark.parametrize("length", [40, 8])
def test_version_may_be_a_commit_whole_or_short(tmp_path, repository, length):
    project = open_project(str(repository.path), repository.first[:length], tmp_path / "fetched")
    assert (project.path / "word.txt").read_text() == "one"
    assert project.commit == repository.first


@pytest.mark.parametrize("uri", ["file://{}#sub", "{}#sub", "{}/sub"])
@pytest.mark.parametrize("version", [None, "v1"])
def test_subfolder_of_a_repository(tmp_path, repository, uri, version):
    project = open_project(uri.format(repository.path), version, tmp_path / "fetched")
    assert project.path.name == "sub"
    assert project.source == str(repository.path / "sub")
    assert project.with_lineage().commit == (repository.first if version else repository.git("rev-parse", "HEAD"))
    assert ("echo one" in (project.path / "MLproject").read_text()) == (version == "v1")


def test_local_repository_tells_where_it_was_cloned_from_without_secrets(tmp_path, repository):
    repository.git("remote", "add", "origin", "https://me:secret@example.org/bot.git")
    for version in (None, "v1"):
        project = open_project(str(repository.path), version, tmp_path / f"fetched-{version}")
        assert project.with_lineage().repository == "https://example.org/bot.git"


def test_bare_repository_is_fetched(tmp_path, repository):
    bare = tmp_path / "bare.git"
    repository.git("clone", "-q", "--bare", ".", str(bare))
    project = open_project(f"file://{bare}#sub", None, tmp_path / "fetched")
    assert "echo two" in (project.path / "MLproject").read_text()


def test_folder_is_itself_whatever_its_name(tmp_path):
    for name in ("mein Bot ü", "c#bot", "100%25", "a.b"):
        (tmp_path / name).mkdir()
        assert open_project(str(tmp_path / name), None, tmp_path / "fetched").path == tmp_path / name
    assert open_project(f"file://{tmp_path}/mein%20Bot%20ü", None, tmp_path / "fetched").path == tmp_path / "mein Bot ü"


@pytest.mark.parametrize(
    ("uri", "version", "hint"),
    [
        ("{}/rebo", None, "no such folder; did you mean {}/repo?"),
        ("{}/repo/word.txt", None, "not a folder; fix: give the folder that holds finetune.yaml"),
        ("{}/repo#sup", None, "it has no folder 'sup'; did you mean {}/repo/sub?"),
        ("{}/repo#../x", None, "leaves the project"),
        ("{}/repo#/etc", None, "leaves the project"),
        ("{}/repo", "v2", "no commit, tag or branch 'v2'; branches and tags: feature, main, v1"),
        ("{}/repo", "featur", "did you mean feature?"),
        ("{}/repo", "0" * 40, "no commit, tag or branch"),
        ("{}/repo", "--help", "no commit, tag or branch '--help'"),
        ("{}/plain", "v1", "the folder is in no git repository; fix: leave --version out"),
        ("https://me:secret@127.0.0.1:9/x.git", None, "'https://127.0.0.1:9/x.git': git could not fetch it"),
        ("git@127.0.0.1:x/y.git", "v1", "git could not fetch it"),
        ("s3://bucket/bot", None, "neither a folder nor a git URI"),
        ("https://host/bot.zip", None, "neither a folder nor a git URI"),
        ("~nobody/x", None, "no such folder"),
        ("x" * 5000, None, "no such folder"),
    ],
)
def test_project_that_cannot_be_had_is_one_clear_error(tmp_path, repository, monkeypatch, uri, version, hint):
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -p 9 -o BatchMode=yes -o ConnectTimeout=3")
    (tmp_path / "plain").mkdir()
    with pytest.raises(ProjectError) as caught:
        open_project(uri.format(tmp_path), version, tmp_path / "fetched")
    message = str(caught.value)
    assert hint.format(tmp_path) in message
    assert "secret" not in message
    assert "\n" not in message
    assert len(message) < 900


# MLproject --------------------------------------------------------------------------------------------------------


def mlproject(folder: Path, text: str) -> Path:
    (folder / "MLproject").write_text(text)
    return folder


def test_no_mlproject_and_another_entry_point_are_none(tmp_path):
    assert mlproject_entry(tmp_path, "lora", {}) is None
    assert mlproject_entry(mlproject(tmp_path, "entry_points: {main: {command: ls}}"), "lora", {}) is None


@pytest.mark.process
def test_own_command_quotes_in_the_shell_and_not_in_mlflow(tmp_path):
    mlproject(tmp_path, "entry_points: {main: {parameters: {a: string, b: {default: 2}}, command: 'echo {a} {b}'}}")
    value = "two words; rm 'x' \"$HOME\""
    entry = mlproject_entry(tmp_path, "main", {"a": value, "more": "x y"})
    assert isinstance(entry, OwnCommand)
    assert entry.parameters == {"a": value, "b": "2", "more": "x y"}
    words = subprocess.run(["bash", "-c", entry.command], capture_output=True, text=True, check=True).stdout.strip()
    assert words == f"{value} 2 --more x y"


def test_preset_fills_in_its_defaults_and_knows_whose_paths_are_whose(tmp_path):
    mlproject(
        tmp_path,
        """
entry_points:
  bot:
    parameters: {rank: {type: float, default: 8}, data: {type: path, default: data/train.jsonl}, eval: path}
    command: "mlflow-finetune run . -e lora -P options.rank={rank} -P data={data} -P eval_data={eval} -P seed=3"
""",
    )
    entry = mlproject_entry(tmp_path, "bot", {"eval": "my rows/it's.jsonl", "max_steps": "5"})
    assert isinstance(entry, FinetuneCommand)
    assert (entry.arguments.project, entry.arguments.entry_point) == (".", "lora")
    assert entry.arguments.parameters == {
        "options.rank": "8",
        "data": "data/train.jsonl",
        "eval_data": "my rows/it's.jsonl",
        "seed": "3",
        "max_steps": "5",
    }
    assert entry.from_caller == {"eval_data", "max_steps"}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "parameters", "hint"),
    [
        ("entry_points: [", {}, "MLproject:1: not valid YAML"),
        ("", {}, "expected keys such as name and entry_points"),
        ("- main", {}, "expected keys such as name and entry_points"),
        ("entry_points:", {}, "entry_points: expected NAME"),
        ("entry_points: {main: ls}", {}, "entry_points.main: no command"),
        ("entry_points: {main: {parameters: {}}}", {}, "entry_points.main: no command"),
        ("entry_points: {main: {command: ls, parameters: [a]}}", {}, "parameters: expected NAME: TYPE"),
        ("entry_points: {main: {command: ls, parameters: {a: 3}}}", {}, "parameters.a: expected a type"),
        ("entry_points: {main: {command: 'ls {a}', parameters: {a: float}}}", {}, "missing parameters: 'a'"),
        ("entry_points: {main: {command: 'ls {a}'}}", {}, "declare the parameter they name"),
        ("entry_points: {main: {command: 'ls {}'}}", {}, "declare the parameter they name"),
        ("entry_points: {main: {command: \"awk '{print}'\"}}", {}, "double braces that are meant"),
        ("{docker_env: {image: x}, entry_points: {main: {command: ls}}}", {}, "wants docker_env"),
        ("entry_points: {main: {command: mlflow-finetune run --frob}}", {}, "No such option '--frob'"),
        ("entry_points: {main: {command: mlflow-finetune run 'x}}", {}, "No closing quotation"),
        ("entry_points: {main: {command: mlflow-finetune run -P rank}}", {}, "-P rank: expected NAME=VALUE"),
        ("entry_points: {main: {command: mlflow-finetune run -v v1}}", {}, "--version in its command"),
        ("entry_points: {main: {command: 'mlflow-finetune run -P a={b}'}}", {}, "declare the parameter they name"),
        (
            "entry_points: {main: {command: mlflow-finetune run -P rank=3}}",
            {"rank": "4"},
            "its command sets -P rank itself",
        ),
    ],
)
def test_broken_mlproject_is_one_clear_error(tmp_path, text, parameters, hint):
    with pytest.raises(ProjectError) as caught:
        mlproject_entry(mlproject(tmp_path, text), "main", parameters)
    assert hint in str(caught.value)
    assert str(tmp_path / "MLproject") in str(caught.value)


def test_shell_with_an_apostrophe_is_nobodys_business(tmp_path):
    folder = mlproject(tmp_path, 'entry_points: {main: {command: "true # don\'t"}}')
    assert mlproject_entry(folder, "main", {}) == OwnCommand("true # don't", {})
