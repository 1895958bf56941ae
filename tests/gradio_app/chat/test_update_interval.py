"""How often pages are told."""

from gradio_app.chat.update_interval import LEAST_S, MOST_S, UpdateInterval


class Hands:
    def __init__(self):
        self.now = self.cpu = 0.0


def interval_at(cost_s, streams):
    hands = Hands()
    interval = UpdateInterval(clock=lambda: hands.now, cpu=lambda: hands.cpu)
    for _ in range(streams):
        interval.stream_started()
    for _ in range(400):
        hands.now += 0.01
        hands.cpu += cost_s
        interval.record_update()
    return interval


def test_few_streams_are_told_fifteen_times_a_second():
    assert interval_at(0.001, 1).interval_s == LEAST_S


def test_many_streams_share_half_a_core():
    assert abs(interval_at(0.002, 100).interval_s - 100 * 0.002 / 0.5) < 1e-6


def test_nobody_waits_longer_than_a_second_and_a_half():
    assert interval_at(0.1, 200).interval_s == MOST_S


def test_streams_that_end_give_their_share_back():
    interval = interval_at(0.002, 100)
    for _ in range(99):
        interval.stream_ended()
    assert interval.interval_s == LEAST_S
