"""A user counts once while a split lasts, and requests without a user each time."""

import asyncio
import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.gate.statistics.failure_rate import Answered
from mlflow_finetune_plugin.gate.statistics.failures import FailureTest
from mlflow_finetune_plugin.serving.router import first_answers
from mlflow_finetune_plugin.serving.router.first_answers import Draw, FirstAnswers
from mlflow_finetune_plugin.serving.router.served_log import ServedLog
from mlflow_finetune_plugin.serving.versions.traffic import Traffic
from mlflow_finetune_plugin.store.served_tags import served

SPLIT = Traffic({"champion": 75.0, "canary": 25.0})
ALIASES = {"champion": "1", "canary": "2"}


def test_users_count_once_until_the_split_ends():
    counts = FirstAnswers()
    drawn = lambda user, is_split=True: counts.is_counted("bot", Draw(user, is_split))  # noqa: E731
    assert [drawn("a"), drawn("a"), drawn("b"), drawn(None), drawn(None)] == [True, False, True, True, True]
    assert not counts.is_counted("bot", None), "a request that names a version is not drawn"
    assert counts.is_counted("other", Draw("a", True))
    assert not drawn("a", False)
    assert drawn("a"), "another split has begun"


@pytest.mark.bad_input
def test_a_key_fails_once_on_either_side_whatever_users_it_names():
    counts = FirstAnswers()
    drawn = lambda user, key, is_split=True: counts.is_counted("bot", Draw(user, is_split), key)  # noqa: E731
    assert [drawn(f"user {number}", "alice") for number in range(3)] == [True, False, False]
    assert drawn("user 9", "bob")
    assert drawn("user 10", None), "an answer that did not fail"
    assert not drawn("user 11", "alice", is_split=False)
    assert drawn("user 11", "alice"), "another split has begun"


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(first_answers, "MOST_USERS", 3)
    counts = FirstAnswers()
    assert [counts.is_counted("bot", Draw(str(user), True)) for user in range(5)] == [True] * 3 + [False] * 2


def test_the_router_reports_both_counts():
    asyncio.run(check_report())


async def check_report():
    tags = {}
    client = SimpleNamespace(set_model_version_tag=lambda model, version, key, value: tags.update({key: value}))
    log = ServedLog(client, 8000, every_s=0.01)
    for _ in range(40):
        log.note("bot", "1", None, Draw("the one whose prompts fail", True))
    for user in range(10):
        log.note("bot", "1", 5.0, Draw(f"user {user}", True))
    log.note("bot", "1", 5.0)
    task = asyncio.create_task(log.run())
    while not tags:
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    (summary,) = served(tags, "bot/1").values()
    assert (summary.answers, summary.failed) == (51, 40)
    assert (summary.first_answers, summary.first_failed) == (11, 1)


def rolled_back(seed, *, each_user_once):
    """A canary that is as good as the champion, with users of whom some fail with every prompt."""
    rng, test, boundary = np.random.default_rng(seed), FailureTest(), CanaryPolicy((25,)).boundary
    counts, always_fails = FirstAnswers(), rng.random(400) < 0.05
    for _ in range(30):
        answered, failed = {"champion": 0, "canary": 0}, {"champion": 0, "canary": 0}
        for user in rng.integers(400, size=100):
            alias = SPLIT.choose(f"model {seed}", ALIASES, str(user))
            if not each_user_once or counts.is_counted("bot", Draw(str(user), True)):
                answered[alias] += 1
                failed[alias] += int(always_fails[user])
        sides = [Answered(answered[alias], failed[alias]) for alias in ("canary", "champion")]
        if all(side.answers for side in sides):
            test = test.after(*sides)
        if test.e_worse >= boundary:
            return True
    return False


@pytest.mark.parametrize(("each_user_once", "least", "most"), [(True, 0.0, 0.025 + 0.022), (False, 0.08, 1.0)])
def test_users_who_fail_with_any_version_roll_nothing_back(each_user_once, least, most):
    """At most alpha / 2 (2.5 %) and two standard errors of 200 simulations; the count of all answers shows that it matters."""
    share = np.mean([rolled_back(seed, each_user_once=each_user_once) for seed in range(200)])
    assert least <= share <= most
