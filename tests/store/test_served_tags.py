"""What routers tell of a version is read as they wrote it, and anything else is one clear error."""

import json
import time

import pytest

from mlflow_finetune_plugin.errors import GateError
from mlflow_finetune_plugin.store.latency_counts import LatencyCounts
from mlflow_finetune_plugin.store.names import SERVED_TAG
from mlflow_finetune_plugin.store.served_tags import LatencySummary, ServedSummary, latency_of, logged_latencies, served

NOW = time.time()
RECENT = LatencySummary(40, 100.0, 200.0, NOW - 60, NOW)


def test_each_router_is_read_as_it_wrote():
    counted = LatencyCounts.of([150.0] * 30 + [2000.0] * 17)
    summaries = {
        "a-8000": ServedSummary(NOW, 50, 3, RECENT, counted),
        "b-8000": ServedSummary(NOW, 7, 7, None, LatencyCounts()),
        "keys-8000": ServedSummary(NOW, 50, 3, RECENT, counted, 60, 12, left_out=19),
        "older-8000": ServedSummary(NOW, 50, 3, RECENT),
    }
    tags = {f"{SERVED_TAG}{name}": summary.to_json() for name, summary in summaries.items()} | {
        "finetune.base": "unrelated"
    }
    assert served(tags, "models:/bot/1") == summaries


def test_a_tag_of_version_0_1_has_no_counts():
    content = json.loads(ServedSummary(NOW, 50, 3, RECENT).to_json())
    del content["latencies"]
    assert served({f"{SERVED_TAG}r": json.dumps(content)}, "it") == {"r": ServedSummary(NOW, 50, 3, RECENT)}


def test_percentiles_are_of_the_sorted_times():
    summary = latency_of([(float(n), float(100 - n)) for n in range(100)])
    assert (summary.answers, summary.p50_ms, summary.p95_ms, summary.since, summary.until) == (
        100,
        51.0,
        95.0,
        0.0,
        99.0,
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"failed": 51}, "counts"),
        ({"failed": -1}, "counts"),
        ({"answers": True}, "counts"),
        ({"left_out": -1}, "counts"),
        ({"first_answers": 51, "first_failed": 0}, "first answers"),
        ({"answers": 50.5}, "counts"),
        ({"begun": float("nan")}, "numbers"),
        ({"failed": 20}, "latencies"),  # 40 answered well of 30
        ({"recent": {**RECENT.__dict__, "p95_ms": 1.0}}, "latencies"),
        ({"recent": {"answers": 1}}, "missing"),
        ({"recent": 3}, "mapping"),
        ({"more": 1}, "unexpected"),
        ({"latencies": {"first": 0, "counts": [46]}}, "not those of its successful answers"),
        ({"latencies": {"first": 0, "counts": [48, -1]}}, "whole numbers"),
        ({"latencies": {"first": 799, "counts": [40, 7]}}, "800 buckets"),
        ({"latencies": {"counts": [47]}}, "first"),
        ({"latencies": [47]}, "indices"),
    ],
)
def test_a_tag_that_is_none_is_one_error(changed, message):
    content = {**json.loads(ServedSummary(NOW, 50, 3, RECENT).to_json()), **changed}
    with pytest.raises(GateError, match=message) as error:
        served({f"{SERVED_TAG}r": json.dumps(content)}, "models:/bot/1")
    assert "models:/bot/1: tag finetune.served.r" in str(error.value)
    assert "fix: delete the tag" in str(error.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["[]", "{}", "no json", "null"])
def test_a_tag_that_is_no_json_object_is_one_error(text):
    with pytest.raises(GateError, match="is not a summary of answers"):
        served({f"{SERVED_TAG}r": text}, "models:/bot/1")


def summary_of(count, ms=200.0, until=NOW):
    return ServedSummary(
        0.0, count, 0, LatencySummary(count, ms / 2, ms, until - 60, until), LatencyCounts.of([ms] * count)
    )


def test_latency_is_of_the_router_that_gave_most_answers_of_late():
    old, few, enough = summary_of(900, until=NOW - 8 * 86400), summary_of(29), summary_of(40)
    tags = {f"{SERVED_TAG}{n}": summary.to_json() for n, summary in enumerate((old, few, enough))}
    notes = []
    assert logged_latencies((tags, "models:/bot/1"), None, notes) == (enough.latencies, None)
    p95_ms = enough.latencies.quantile_ms(0.95)
    assert notes == [f"models:/bot/1: p95 {p95_ms:g} ms of 40 answers, reported by router 2"]
    only_failed = {f"{SERVED_TAG}r": ServedSummary(0.0, 9, 9, None).to_json()}
    assert logged_latencies((only_failed, "models:/bot/1"), None, notes) == (None, None)
    assert "found 0" in notes[-1]
    older = {f"{SERVED_TAG}r": ServedSummary(0.0, 40, 0, RECENT).to_json()}
    assert logged_latencies((older, "models:/bot/1"), None, notes) == (None, None)
    assert notes[-1] == "models:/bot/1: r reported no counts of latencies; fix: restart it with this version"


def tags_of(**answers):
    """Tags of routers that told so many answers, each with latencies of its own."""
    return {f"{SERVED_TAG}{name}": summary_of(count, ms=float(count)).to_json() for name, count in answers.items()}


def test_two_versions_are_compared_by_one_router():
    notes = []
    candidate, champion = tags_of(a=900, b=40, c=60), tags_of(b=70, c=50)
    totals = lambda *sides: tuple(counts and counts.total for counts in logged_latencies(*sides, notes))  # noqa: E731
    assert totals((candidate, "bot/2"), (champion, "bot/1")) == (60, 50), "c told the most of both"
    assert totals((candidate, "bot/2"), (tags_of(d=99), "bot/1")) == (900, None)
    assert "no router reported enough answers of both bot/2 and bot/1" in notes[-2]
    assert totals((candidate, "bot/2"), (tags_of(a=29), "bot/1")) == (900, None)
