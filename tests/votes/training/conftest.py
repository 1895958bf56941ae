"""A registry with two versions, and a journal beside it."""

from collections.abc import Iterator

import pytest
from votes_cast import Ledger, ledger_of_this_user


@pytest.fixture
def ledger(tmp_path, empty_store, monkeypatch) -> Iterator[Ledger]:
    yield from ledger_of_this_user(tmp_path, empty_store, monkeypatch)
