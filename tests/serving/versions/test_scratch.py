"""Scratch folders go with their process, however it ends, and never under a living one."""

import subprocess
import sys

import pytest

from mlflow_finetune_plugin.errors import StoreError
from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder

MAKE = """
import sys
from pathlib import Path
from mlflow_finetune_plugin.serving.versions.scratch import ScratchFolder
scratch = ScratchFolder(Path(sys.argv[1]))
(scratch.draft() / "half").write_text("x")
print(scratch.folder, flush=True)
sys.stdin.read()
"""


def another(store):
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


@pytest.mark.fault
@pytest.mark.process
def test_the_dead_are_swept_and_the_living_are_not(tmp_path):
    killed, left = another(tmp_path)
    living, kept = another(tmp_path)
    killed.kill()
    killed.wait()
    own = ScratchFolder(tmp_path)
    folders = {str(path) for path in own.folder.parent.iterdir() if path.is_dir()}
    assert folders == {kept, str(own.folder)}
    assert left not in folders
    living.communicate("")
    own.remove()
    last = ScratchFolder(tmp_path)
    assert [path for path in last.folder.parent.iterdir() if path.is_dir()] == [last.folder]
    last.remove()
    assert list((tmp_path / "work").iterdir()) == []


def test_no_room_is_told(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StoreError, match="cannot be written"):
        ScratchFolder(tmp_path / "store").draft()


def test_a_fetch_that_ends_after_its_service_leaves_nothing(tmp_path):
    scratch = ScratchFolder(tmp_path)
    scratch.draft()
    scratch.remove()
    with pytest.raises(StoreError, match="is ending"):
        scratch.draft()
    assert list((tmp_path / "work").iterdir()) == []
