"""The suite of attacks: docs/faults.md names the tests that have the marks, and there are as many as was promised."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "faults.md"
LEAST_FAULTS, LEAST_BAD_INPUTS = 40, 80
QUICK_FILES = {"serving/router/test_requests.py", "store/test_served_tags.py", "votes/journal/test_journal.py"}


def marked(mark: str) -> set[str]:
    """Return the tests with a mark, as ``path::name``."""
    return {
        f"{path.relative_to(TESTS)}::{node.name}"
        for path in TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(mark in ast.unparse(decorator).split(".") for decorator in node.decorator_list)
    }


def rows(section: str) -> list[list[str]]:
    """Return the cells of the rows of the tables before or from the section on bad input."""
    faults, _, bad_input = PAGE.read_text(encoding="utf-8").partition("## Bad input")
    text = {"faults": faults, "bad input": bad_input}[section]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return [row for row in cells if row[0] not in ("fault", "input") and not row[0].startswith("--")]


def test_every_fault_of_the_list_has_its_test_and_what_must_be_true_afterwards():
    listed = [row[2].strip("`") for row in rows("faults")]
    assert all(len(row) == 3 and all(row) for row in rows("faults"))
    assert sorted(listed) == sorted(marked("fault"))
    assert len(listed) >= LEAST_FAULTS


def test_every_file_with_bad_input_is_in_the_list():
    listed = [path for row in rows("bad input") for path in re.findall("`([^`]+)`", row[1])]
    assert sorted(listed) == sorted({test.partition("::")[0] for test in marked("bad_input")})


def test_there_are_enough_bad_inputs(request):
    """Parametrised cases count, so a run of a few files cannot tell. `make test` collects enough of them, too."""
    collected = request.session.items
    if not {str(item.path.relative_to(TESTS)) for item in collected if item.path.is_relative_to(TESTS)} >= QUICK_FILES:
        pytest.skip("only some of the tests were collected")
    assert sum(item.get_closest_marker("bad_input") is not None for item in collected) >= LEAST_BAD_INPUTS
