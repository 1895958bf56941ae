"""SIGKILL at changes that a canary makes: users feel nothing, and the next call puts back or finishes (all of them: benchmarks)."""

import random

import pytest
from canary_processes import faults_after_settling, faults_left_by_kill, kill_canary, prepare

DICE = random.Random(0)


@pytest.mark.fault
@pytest.mark.process
@pytest.mark.parametrize(
    ("fails", "points"), [(0.0, DICE.sample(range(3, 30), 4)), (0.6, DICE.sample(range(3, 17), 2))]
)
def test_a_canary_may_be_killed_at_any_change(workplace, fails, points):
    client = workplace.client()
    for at in points:
        name = f"bot-{at}"
        prepare(client, name)
        assert kill_canary(workplace.tracking_uri, at, name, fails=fails), at
        assert faults_left_by_kill(client, name) == [], at
        assert faults_after_settling(client, name) == [], at
