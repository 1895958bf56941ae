"""One pace for all sides: nobody can see which is faster."""

from gradio_app.client import Answer
from gradio_app.pacing import JointPace, OpenPace


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def say(answer, length, *, over=False):
    answer.add("x" * (length - answer.length))
    answer.ended_at = 1.0 if over else None


def test_open_everything_is_shown_as_it_comes():
    a, b = Answer(), Answer()
    say(a, 7)
    assert OpenPace().shown([a, b]) == [7, 0]


def test_blind_both_begin_together_and_grow_alike():
    a, b, pace = Answer(), Answer(), JointPace(clock=Clock())
    say(a, 50)
    assert pace.shown([a, b]) == [0, 0]
    say(b, 3)
    assert pace.shown([a, b]) == [3, 3]
    say(b, 20)
    assert pace.shown([a, b]) == [20, 20]


def test_the_rest_of_the_faster_is_shown_at_the_pace_so_far():
    clock = Clock()
    a, b, pace = Answer(), Answer(), JointPace(clock=clock)
    say(a, 1000, over=True)
    say(b, 0)
    pace.shown([a, b])
    for tick in range(1, 11):  # the slower one: 10 characters in 0.1 s each
        clock.now = tick / 10
        say(b, 10 * tick, over=tick == 10)
        shown = pace.shown([a, b])
    assert shown[1] == 100
    assert 100 <= shown[0] <= 115
    clock.now = 1.1
    first, second = pace.shown([a, b])
    assert second == 100
    assert 105 <= first <= 125  # about 110 a second so far, or 125 so that the rest takes 8 s at most
    assert not pace.is_over([a, b])
    for tick in range(12, 120):
        clock.now = tick / 10
        pace.shown([a, b])
    assert pace.is_over([a, b])
    assert pace.shown([a, b]) == [1000, 100]


def test_which_of_the_two_was_faster_does_not_show():
    """The same texts with the speeds changed over are shown in the same way."""

    def course(fast_first):
        clock = Clock()
        a, b, pace = Answer(), Answer(), JointPace(clock=clock)
        fast, slow = (a, b) if fast_first else (b, a)
        seen = []
        for tick in range(1, 60):
            clock.now = tick / 10
            say(fast, min(100, 40 * tick), over=40 * tick >= 100)
            say(slow, min(100, 5 * tick), over=5 * tick >= 100)
            seen.append(pace.shown([a, b]))
        return seen

    assert course(fast_first=True) == course(fast_first=False)


def test_a_side_that_says_nothing_holds_nobody_up_for_long():
    clock = Clock()
    a, b, pace = Answer(), Answer(), JointPace(longest_wait_s=2.0, clock=clock)
    say(a, 40)
    assert pace.shown([a, b]) == [0, 0]
    clock.now = 1.9
    assert pace.shown([a, b]) == [0, 0]
    clock.now = 2.1
    say(a, 41)
    assert pace.shown([a, b]) == [41, 0]


def test_a_failed_side_ends_at_once_and_the_other_goes_on():
    a, b, pace = Answer(), Answer(), JointPace(clock=Clock())
    b.fault, b.ended_at = "refused", 1.0
    say(a, 9)
    assert pace.shown([a, b]) == [9, 0]
