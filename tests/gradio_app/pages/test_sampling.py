"""Settings as people write them."""

import pytest

from gradio_app.chat.client import SamplingSettings
from gradio_app.chat.session import SessionError
from gradio_app.pages.sampling import number_of, own_sampling, shared_sampling

SHARED = SamplingSettings(temperature=0.5, top_p=0.8, max_tokens=64, seed=3)


def test_what_is_empty_is_not_asked_for():
    assert shared_sampling(0, 1, "", None) == SamplingSettings(0.0, 1.0, None, None)
    assert shared_sampling(0.7, 0.9, " 33 ", "-7") == SamplingSettings(0.7, 0.9, 33, -7)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "asked",
    [
        (None, 1, "", ""),
        ({"a": 1}, 1, "", ""),
        (3, 1, "", ""),
        (float("nan"), 1, "", ""),
        (0, [], "", ""),
        (0, 1, {}, ""),
        (0, 1, 1.5, ""),
        (0, 1, "", ["7"]),
    ],
)
def test_whatever_a_page_sends_is_a_setting_or_is_refused_in_words(asked):
    with pytest.raises(SessionError, match="write a"):
        shared_sampling(*asked)


def test_a_side_s_own_settings_stand_before_the_shared_ones():
    assert own_sampling(SHARED, ["", None, " ", ""]) is None
    assert own_sampling(SHARED, ["0", "", "", ""]) == SamplingSettings(0.0, 0.8, 64, 3)
    assert own_sampling(SHARED, ["", "0,5", "1", "0"]) == SamplingSettings(0.5, 0.5, 1, 0)


@pytest.mark.parametrize(
    ("label", "text", "said"),
    [
        ("Temperature", "hot", "Temperature is 'hot'; write a number from 0 to 2, or leave the field empty."),
        ("Temperature", "2.1", "from 0 to 2"),
        ("Temperature", "nan", "from 0 to 2"),
        ("Top p", "0", "from 0.01 to 1"),
        ("Max tokens", "1.5", "write a whole number from 1 to 100,000"),
        ("Max tokens", "0", "from 1"),
        ("Seed", "9" * 30, "write a whole number, or leave the field empty."),
    ],
)
def test_what_is_no_number_is_said_with_what_to_write(label, text, said):
    with pytest.raises(SessionError) as refused:
        number_of(label, text)
    assert said in str(refused.value)
