"""Answers from real HTTP endpoints, well and unwell."""

import asyncio
import time

import pytest

from gradio_app.chat import client
from gradio_app.chat.client import Endpoint, SamplingSettings, StreamedAnswer, new_http, receive
from mlflow_finetune_plugin.votes import Receipt

ASKED = [{"role": "user", "content": "where is my card?"}]


def answer_of(url, model, *, sampling=None, stop_after_s=None):
    async def ask():
        answer = StreamedAnswer()
        async with new_http() as http:
            task = asyncio.create_task(
                receive(http, Endpoint(url), model, ASKED, sampling or SamplingSettings(), answer)
            )
            if stop_after_s is not None:
                await asyncio.sleep(stop_after_s)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return answer

    return asyncio.run(ask())


def test_a_whole_answer_comes_with_its_figures_and_its_receipt(endpoint):
    answer = answer_of(endpoint, "base")
    assert answer.text == "the base says little"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.finish_reason) == (12, 4, "stop")
    assert answer.fault is None
    assert isinstance(answer.receipt, Receipt)
    assert (answer.receipt.model, answer.receipt.version) == ("bot", "base")
    assert answer.first_token_s < 2


def test_speed_is_tokens_after_the_first_by_the_time_after_the_first(endpoint):
    answer = answer_of(endpoint, "slow")
    assert 15 < answer.tokens_per_s < 21  # it speaks at 20


def test_an_answer_that_comes_all_at_once_has_a_time_and_no_speed(endpoint):
    answer = answer_of(endpoint, "bot@champion")
    assert answer.completion_tokens == 44
    assert answer.tokens_per_s is None
    assert 0 < answer.total_s < 2


def test_sampling_reaches_the_endpoint_and_what_is_not_set_does_not():
    assert SamplingSettings(temperature=0.5, max_tokens=None, seed=7).to_json() == {
        "temperature": 0.5,
        "top_p": 1.0,
        "seed": 7,
    }


@pytest.mark.parametrize(
    ("model", "fault", "detail"),
    [
        ("unwell", "refused the request (HTTP 500)", "unwell is not well"),
        ("nobody", "refused the request (HTTP 404: it does not serve this model now)", "nobody is not well"),
        ("cut", "broke off its answer", "ClientPayloadError"),
        ("garbage", "broke off its answer", "JSONDecodeError"),
        ("broken", "broke off its answer", "the engine of broken broke off"),
    ],
)
def test_what_goes_wrong_is_told_in_words_and_in_detail(endpoint, model, fault, detail):
    answer = answer_of(endpoint, model)
    assert answer.fault == fault
    assert detail in answer.fault_detail
    assert answer.is_over


def test_what_came_before_it_broke_off_is_kept(endpoint):
    assert answer_of(endpoint, "cut").text.startswith("this will not")


def test_an_endpoint_that_is_not_there(endpoint):
    answer = answer_of("http://127.0.0.1:9/v1", "base")
    assert answer.fault == "cannot be reached"


def test_an_endpoint_that_says_nothing_is_given_up(endpoint, monkeypatch):
    monkeypatch.setattr(client, "SILENCE_S", 0.3)
    start = time.monotonic()
    answer = answer_of(endpoint, "mute")
    assert answer.fault.startswith("sent nothing for")
    assert time.monotonic() - start < 5


def test_a_stopped_answer_keeps_what_has_come_and_hangs_up(endpoint):
    answer = answer_of(endpoint, "endless", stop_after_s=0.5)
    assert answer.is_over
    assert 10 < answer.length < 3000


def test_an_answer_without_an_end_is_cut_off(endpoint, monkeypatch):
    monkeypatch.setattr(client, "LONGEST_ANSWER", 50)
    answer = answer_of(endpoint, "slow")
    assert answer.fault == "was cut off after 50 characters"


def test_a_redirect_is_not_followed_so_that_no_key_goes_elsewhere(endpoint):
    assert "secret" not in repr(Endpoint(endpoint, "secret"))
    assert Endpoint("http://user:word@host:1/v1").name == "host:1"
