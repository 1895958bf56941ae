"""A password in the tracking address: no command prints it, and no file holds it that others may read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY, make_workplace, stop_jobs

SECRET = "s3cret-7391"


@pytest.fixture
def guarded(tmp_path, server):
    address = server.uri.replace("http://", f"http://ann:{SECRET}@")
    workplace = make_workplace(tmp_path, address)
    yield workplace
    stop_jobs(workplace)


@pytest.mark.process
@pytest.mark.train
def test_a_run_and_its_commands_show_no_password_of_the_tracking_server(guarded):
    project = str(REPOSITORY / "recipes" / "quickstart")
    outputs = {"run": guarded.finetune_run(project, "-P", "max_steps=2", "-P", "eval.max_rows=4")}
    (name,) = [model.name for model in guarded.client().search_registered_models()]
    for command in (
        ["history", name],
        ["votes", name],
        ["doctor"],
        ["promote", name, "--dry-run"],
        ["export", f"{name}/1", "--merged", "merged"],
        ["export", f"{name}/9", "--merged", "none"],
    ):
        outputs[" ".join(command)] = guarded.cli(*command)
    assert outputs["run"].returncode == 0, outputs["run"].stdout
    assert outputs[f"export {name}/1 --merged merged"].returncode == 0
    assert [command for command, done in outputs.items() if SECRET in done.stdout] == []
    assert [str(path) for path in holders(guarded.path) if path.stat().st_mode & 0o077] == []
    run = guarded.only_run()
    assert SECRET not in str(run.to_dictionary())


def holders(folder: Path) -> list[Path]:
    """The files in a folder that contain the password."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
