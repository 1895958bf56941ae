import pytest

from gradio_app.web.attempts import Attempts


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def guess(attempts, name, address, times=1):
    """Delays of wrong passwords, one after another."""
    delays = []
    for _ in range(times):
        delays.append(attempts.begin(name, address))
        attempts.end(name, address, is_right=False)
    return delays


def test_wrong_passwords_are_delayed_more_and_more_and_never_refused():
    attempts = Attempts(Clock())
    assert guess(attempts, "alice", "10.0.0.1", 12) == [0, 0, 0, 0, 0, 1, 2, 4, 8, 8, 8, 8]


@pytest.mark.bad_input
def test_guesses_from_one_address_delay_the_user_at_no_other():
    attempts = Attempts(Clock())
    guess(attempts, "alice", "10.0.0.1", 29)
    assert attempts.begin("alice", "10.0.0.2") == 0
    assert attempts.begin("bob", "10.0.0.1") == 0


def test_one_password_on_many_names_is_delayed_by_the_address():
    attempts = Attempts(Clock())
    delays = [guess(attempts, f"user{number}", "2001:db8::1")[0] for number in range(34)]
    assert delays == [0] * 30 + [1, 2, 4, 8]
    assert attempts.begin("another", "2001:db8::ffff") == 8  # the same /64
    assert attempts.begin("another", "2001:db8:0:1::1") == 0


def test_the_right_password_ends_the_delay_of_its_name_and_not_of_the_address():
    attempts = Attempts(Clock())
    for number in range(29):
        guess(attempts, f"user{number}", "10.0.0.1")
    guess(attempts, "alice", "10.0.0.1", 5)
    assert attempts.begin("alice", "10.0.0.1") == 8
    attempts.end("alice", "10.0.0.1", is_right=True)
    assert guess(attempts, "alice", "10.0.0.2") == [0]
    assert attempts.begin("mallory", "10.0.0.1") == 8


def test_a_quarter_of_an_hour_without_a_wrong_password_ends_the_delay():
    clock = Clock()
    attempts = Attempts(clock)
    guess(attempts, "alice", "10.0.0.1", 9)
    clock.now = 901.0
    assert attempts.begin("alice", "10.0.0.1") == 0


@pytest.mark.bad_input
def test_attempts_at_once_do_not_pass_the_delay_and_are_limited():
    attempts = Attempts(Clock())
    guess(attempts, "alice", "10.0.0.1", 5)
    assert [attempts.begin("alice", "10.0.0.1") for _ in range(5)] == [1, 2, 4, 8, None]
    attempts.end("alice", "10.0.0.1", is_right=False)
    assert attempts.begin("alice", "10.0.0.1") == 8
    others = [attempts.begin(f"user{number}", "10.0.0.1") for number in range(29)]
    assert others[:28].count(None) == 0
    assert others[28] is None, "32 of one address wait at once"
