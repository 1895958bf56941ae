"""Which rows a version was not trained on, and what is noted of the others."""

from typing import NamedTuple

import pytest
from proven_versions import rows

from mlflow_finetune_plugin.data.conversations.split import hash_eval_row
from mlflow_finetune_plugin.promotion.evidence.answers import are_unseen

ROWS = rows(3)


class Version(NamedTuple):
    """The two attributes of a proven version that are read."""

    uri: str
    trained_rows: tuple[set[int], int] | None


def trained_on(*indices):
    return Version("models:/bot/1", ({hash_eval_row(ROWS[i], 0) for i in indices}, 0))


@pytest.mark.parametrize(
    ("version", "unseen", "notes"),
    [
        (trained_on(), [True, True, True], []),
        (
            trained_on(1),
            [True, False, True],
            ["models:/bot/1 was trained on 1 of 3 new rows: they are left out"],
        ),
        (
            Version("models:/bot/1", None),
            [True, True, True],
            [
                "models:/bot/1: whether it was trained on these rows is not known, because its run did not record its rows"
            ],
        ),
    ],
)
def test_only_rows_that_a_version_may_know_are_noted(version, unseen, notes):
    noted: list[str] = []
    assert are_unseen(ROWS, [version], noted, "new rows") == unseen
    assert noted == notes
