"""``make setup`` on a Python that the package does not support."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.process
@pytest.mark.parametrize("version", [(2, 7), (3, 10)])
def test_setup_on_an_old_python_names_the_versions_that_work(tmp_path: Path, version: tuple[int, int]) -> None:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    old = tmp_path / "python"
    old.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.version_info = {(*version, 1)}; exec(sys.argv[2])' \"$@\"\n"
    )
    old.chmod(0o755)
    command = ["make", "-s", "setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert f"Python {version[0]}.{version[1]} is too old; fix: make PYTHON=python3.11" in answer.stderr
    assert "3.11, 3.12 and 3.13" in answer.stderr
    assert not (tmp_path / "venv").exists()
