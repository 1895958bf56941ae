"""A test with its number, as a tag of the registered model holds it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mlflow_finetune_plugin.errors import MoveError


@dataclass(frozen=True)
class NumberedTest:
    """What a test may spend of the error: its number, from 1, and how many earlier tests had shown a better candidate.

    ``is_better`` says whether this test has shown one.
    """

    number: int
    discoveries: int
    is_better: bool = False

    def to_json(self) -> str:
        return json.dumps(vars(self))


def tests_from_tags(tags: Mapping[str, str], prefix: str) -> dict[str, NumberedTest]:
    """Read tests from the tags of the registered model, by what follows ``prefix``. Raises MoveError for a tag that was changed."""
    tests = {}
    for name, value in tags.items():
        if not name.startswith(prefix):
            continue
        try:
            tests[name.removeprefix(prefix)] = NumberedTest(**json.loads(value))
        except (TypeError, ValueError) as error:
            raise MoveError(
                f"the tag {name} of the registered model is {value!r}, which this package did not write; "
                "fix: restore it from the report of the first decision that it names, or delete it to test again"
            ) from error
    return tests


def next_test(tests: Collection[NumberedTest], looks: int = 1) -> NumberedTest:
    """Return the test that follows ``tests``. One that was chosen as the best of several takes a number for each of these ``looks``."""
    number = max((test.number for test in tests), default=0) + looks
    return NumberedTest(number, sum(test.is_better for test in tests))
