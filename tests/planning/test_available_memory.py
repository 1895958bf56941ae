"""What is left, by limits that are really set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mlflow_finetune_plugin.planning.memory import _cgroup_free, host_room

PROGRAM = """
import json, resource
import psutil
from mlflow_finetune_plugin.planning.memory import host_room
vms = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (vms + 64 * 2**20, resource.RLIM_INFINITY))
room = host_room()
print(json.dumps([room.bytes - psutil.Process().memory_info().rss, room.limit]))
"""


def test_available_ram_bounds_the_room():
    room = host_room()
    assert 0 < room.bytes <= psutil.virtual_memory().total + 2**20


@pytest.mark.process
def test_an_address_space_limit_is_seen():
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    left, limit = json.loads(done.stdout)
    assert limit == "RLIMIT_AS (ulimit -v)"
    assert 48 * 2**20 < left <= 65 * 2**20


def test_a_control_group_leaves_its_limit_less_its_use(tmp_path):
    limit, used = tmp_path / "memory.max", tmp_path / "memory.current"
    assert _cgroup_free(limit, used) is None
    used.write_text("300\n")
    for text, expected in (("1000\n", 700), ("max\n", None), (str(2**63 - 4096), None), ("200\n", 0)):
        limit.write_text(text)
        assert _cgroup_free(limit, used) == expected
