"""Answers that give themselves away."""

import pytest

from gradio_app.chat.naming import MASK, is_distinctive, masked, names_itself

OURS = {"my-bot@champion", "my-bot/2", "my-bot"}


@pytest.mark.parametrize(
    "text",
    [
        "I am my-bot/2, at your service",
        "ask MY-BOT@CHAMPION instead",
        "As ChatGPT, I cannot",
        "I'm an assistant, made by OpenAI" * 0 + "I was created by Anthropic.",
        "My name is Qwen.",
        "I am a large language model called Llama",
        "this is Gemini speaking",
    ],
)
def test_an_answer_that_names_a_model_is_noticed(text):
    assert names_itself(text, OURS)


@pytest.mark.parametrize(
    "text",
    [
        "the base of the mountain",
        "a llama is an animal of the Andes",
        "Gemini is a constellation",
        "my bottle",
        "Claude Monet painted water lilies",
        "",
    ],
)
def test_prose_is_left_alone(text):
    assert not names_itself(text, OURS | {"base"})


def test_identities_are_blackened_whatever_their_case():
    assert masked("So says My-Bot/2.", OURS) == f"So says {MASK}."
    assert masked("the base", {"base"}) == "the base"
    assert not is_distinctive("base")


def test_an_end_that_may_become_an_identity_is_held_back():
    assert masked("I am my-b", OURS, is_whole=False) == "I am "
    assert masked("I am my-b", OURS, is_whole=True) == "I am my-b"
    assert masked("I am my-bot/2", OURS, is_whole=False) == "I am "
    assert masked("I am my-bot/2 now", OURS, is_whole=False) == f"I am {MASK} now"


def test_no_prefix_of_a_growing_answer_ever_shows_an_identity():
    text = "hello, I am my-bot@champion, also my-bot/2 and my-bot."
    for length in range(len(text) + 1):
        shown = masked(text[:length], OURS, is_whole=length == len(text))
        assert "my-bo" not in shown
