"""One pace for all sides: nobody can see which is faster."""

import itertools
import random
import statistics

import pytest

from gradio_app.chat.client import StreamedAnswer
from gradio_app.chat.pacing import JointPace, OpenPace


def even():
    return 0.5


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def say(answer, length, *, over=False):
    answer.add("x" * (length - answer.length))
    answer.ended_at = 1.0 if over else None


def test_open_everything_is_shown_as_it_comes():
    a, b = StreamedAnswer(), StreamedAnswer()
    say(a, 7)
    assert OpenPace().shown([a, b]) == [7, 0]


def test_blind_both_begin_together_and_grow_alike():
    clock = Clock()
    a, b, pace = StreamedAnswer(), StreamedAnswer(), JointPace(clock=clock, chance=even)
    say(a, 500)
    assert pace.shown([a, b]) == [0, 0]
    say(b, 3)
    assert pace.shown([a, b]) == [1, 1]
    for tick in range(1, 100):
        clock.now = tick / 10
        say(b, 3 + 4 * tick)
        one, other = pace.shown([a, b])
        assert one == other < b.length
    assert 4 * 99 - one < 130  # 80 characters behind, at an even pace


def test_the_rest_of_the_faster_is_shown_at_the_pace_so_far():
    clock = Clock()
    a, b, pace = StreamedAnswer(), StreamedAnswer(), JointPace(clock=clock, chance=even)
    say(a, 600, over=True)
    say(b, 0)
    pace.shown([a, b])
    for tick in range(1, 51):  # the slower one: 10 characters in 0.1 s each
        clock.now = tick / 10
        say(b, 10 * tick, over=tick == 50)
        shown = pace.shown([a, b])
    assert shown == [shown[0]] * 2
    assert 380 < shown[0] < 500
    was = shown[0]
    for tick in range(51, 61):
        clock.now = tick / 10
        shown = pace.shown([a, b])
    assert 60 <= shown[0] - was <= 140  # a second more at about 100 a second
    for tick in range(61, 90):
        clock.now = tick / 10
        pace.shown([a, b])
    assert pace.is_over([a, b])
    assert pace.shown([a, b]) == [600, 500]


def test_what_came_at_once_is_there_at_once():
    clock = Clock()
    a, b, pace = StreamedAnswer(), StreamedAnswer(), JointPace(clock=clock)
    say(a, 2000, over=True)
    pace.shown([a, b])
    clock.now = 1.0
    say(b, 4, over=True)
    assert pace.shown([a, b]) == [1, 1]
    clock.now = 1.5
    assert pace.shown([a, b]) == [2000, 4]
    assert pace.is_over([a, b])


@pytest.mark.parametrize(("slow", "fast"), [(20, 200), (50, 55)])
def test_where_and_when_the_updates_stop_says_nothing(slow, fast):
    """As it comes, what is shown ends where the slower side's words end: that alone says who it is, in nine of ten turns."""
    chance = random.Random(3)
    by_words = by_times = 0
    for number in range(100):
        speeds = (slow, fast) if number % 2 else (fast, slow)
        texts, updates = turn(chance, speeds)
        ends = [share_of_word_ends(text, [shown[side] for _, shown in updates]) for side, text in enumerate(texts)]
        by_words += (ends[0] > ends[1]) == (number % 2 == 1)
        fits = [fit_of_times(text, [(at, shown[side]) for at, shown in updates]) for side, text in enumerate(texts)]
        by_times += (fits[0] > fits[1]) == (number % 2 == 1)
    assert 34 <= by_words <= 66  # 99.9 % of a coin's hundreds
    assert 34 <= by_times <= 66


def turn(chance, speeds):
    """Both texts, and the updates of a page that looks 15 times a second."""
    clock, answers = Clock(), [StreamedAnswer(), StreamedAnswer()]
    coming = []
    for speed in speeds:
        at, words = 0.5, []
        for place in range(80):
            words.append((at, " " * (place > 0) + "x" * chance.choice((1, 2, 3, 5, 8, 11))))
            at += chance.uniform(0.7, 1.3) / speed
        coming.append(words)
    texts = ["".join(word for _, word in words) for words in coming]
    pace, updates = JointPace(clock=clock, chance=chance.random), [(0.0, [0, 0])]
    while not pace.is_over(answers):
        for answer, words in zip(answers, coming, strict=True):
            while words and words[0][0] <= clock.now:
                answer.add(words.pop(0)[1])
            answer.ended_at = None if words else clock.now
        shown = pace.shown(answers)
        if shown != updates[-1][1]:
            updates.append((clock.now, shown))
        clock.now += 1 / 15
    return texts, updates


def share_of_word_ends(text, stops):
    within = [stop for stop in stops if 0 < stop < len(text)]
    return sum(text[stop] == " " for stop in within) / len(within)


def fit_of_times(text, updates):
    """How well words a character explain seconds a character."""
    words, times = [], []
    for (before, start), (at, stop) in itertools.pairwise(updates):
        if 0 < start < stop < len(text):
            words.append(text[start:stop].count(" ") / (stop - start))
            times.append((at - before) / (stop - start))
    return statistics.correlation(words, times)


def test_which_of_the_two_was_faster_does_not_show():
    """The same texts with the speeds changed over are shown in the same way."""

    def course(fast_first):
        clock = Clock()
        a, b, pace = StreamedAnswer(), StreamedAnswer(), JointPace(clock=clock, chance=even)
        fast, slow = (a, b) if fast_first else (b, a)
        seen = []
        for tick in range(1, 60):
            clock.now = tick / 10
            say(fast, min(100, 40 * tick), over=40 * tick >= 100)
            say(slow, min(100, 5 * tick), over=5 * tick >= 100)
            seen.append(pace.shown([a, b]))
        assert pace.is_over([a, b])
        return seen

    assert course(fast_first=True) == course(fast_first=False)


def test_a_side_that_says_nothing_holds_nobody_up_for_long():
    clock = Clock()
    a, b, pace = StreamedAnswer(), StreamedAnswer(), JointPace(longest_wait_s=2.0, clock=clock)
    say(a, 40)
    assert pace.shown([a, b]) == [0, 0]
    clock.now = 1.9
    assert pace.shown([a, b]) == [0, 0]
    clock.now = 2.1
    say(a, 41)
    assert pace.shown([a, b])[0] > 0


def test_a_failed_side_ends_at_once_and_the_other_goes_on():
    a, b, pace = StreamedAnswer(), StreamedAnswer(), JointPace(clock=Clock())
    b.fault, b.ended_at = "refused", 1.0
    say(a, 9)
    assert pace.shown([a, b])[0] > 0
