"""What the tests of submission share: a request's data, and what a refusal must tell and leave."""

from __future__ import annotations

from conftest import Workplace

DATA = {"data": "train.jsonl"}


def assert_nothing_left(desk: Workplace) -> None:
    client = desk.client()
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert runs == []
    assert not list((desk.home / "jobs").glob("*"))


def assert_tells(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message, (part, message)
    assert len(message) < 2500
