"""The tiers keep themselves: a test without a mark cannot start a process."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiers import STARTS_PROCESSES


def test_a_test_without_a_mark_cannot_start_a_process():
    with pytest.raises(AssertionError, match=r"fix: mark it with pytest\.mark\.process"):
        subprocess.run([sys.executable, "-c", ""], check=True)


@pytest.mark.process
def test_a_test_with_the_mark_can():
    assert subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0


def test_fixtures_that_start_processes_mark_their_tests(request):
    """Every test of this session that uses such a fixture has the mark that keeps it out of the quick tier."""
    from tiers import BROWSER_FIXTURES, PROCESS_FIXTURES

    for item in request.session.items:
        if set(item.fixturenames) & (PROCESS_FIXTURES | BROWSER_FIXTURES):
            assert any(item.get_closest_marker(name) for name in STARTS_PROCESSES), item.nodeid
