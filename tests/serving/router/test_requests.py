"""What a client may send: anything that an engine could not be given, or that would flood it, is one clear error."""

import json

import pytest

from mlflow_finetune_plugin.serving.router.requests import RequestError, read_request

CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
TURNS = [{"role": "user", "content": "hello"}]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("route", "raw", "said"),
    [
        (PLAIN, b'{"model": "m", "prompt": "a", "temperature": NaN}', "is not a number in JSON"),
        (PLAIN, b'{"model": "m", "prompt": "a", "temperature": 1e999}', "a number that is too large"),
        (PLAIN, b'{"model": "m", "prompt": "\\ud83d"}', "half a character"),
        (PLAIN, b'{"model": "m", "prompt": "a", "user": "\\ud83d"}', "half a character"),
        (PLAIN, b'{"model": "m", "prompt": "a", "\\ud83d": 1}', "half a character"),
        (PLAIN, b'{"model": "m", "prompt": "a", "stream": 1}', "stream = .*expected true or false"),
        (PLAIN, b'{"model": "m", "prompt": "a", "stream": "true"}', "stream = .*expected true or false"),
        (PLAIN, b'{"model": "m", "prompt": "a", "n": true}', "n = True: expected a whole number"),
        (PLAIN, b'{"model": "m", "prompt": "a", "best_of": 1000000}', "best_of must be between"),
        (PLAIN, json.dumps({"model": "m", "prompt": ["a"] * 17}).encode(), "more than 16 answers"),
        (PLAIN, json.dumps({"model": "m", "prompt": [[1, 2]] * 9, "n": 2}).encode(), "more than 16 answers"),
        (PLAIN, b'{"model": 1, "prompt": "a"}', "model = 1: expected text"),
        (
            PLAIN,
            b'{"model": "m", "prompt": "a", "stop_token_ids": 5}',
            "stop_token_ids = 5: expected a list of token ids",
        ),
        (PLAIN, b'{"model": "m", "prompt": "a", "stop_token_ids": "12"}', "expected a list of token ids"),
        (PLAIN, b'{"model": "m", "prompt": "a", "stop_token_ids": [[1]]}', "expected a list of token ids"),
        (PLAIN, b'{"model": "m", "prompt": "a", "max_tokens": "5"}', "max_tokens = '5': expected a whole number"),
        (PLAIN, b'{"model": "m", "prompt": "a", "temperature": 99}', "expected a number from 0 to 2"),
        (PLAIN, b'{"model": "m", "prompt": "a", "repetition_penalty": 1e-300}', "expected a number from 0.1 to 10"),
        (PLAIN, b'{"model": "m", "prompt": "a", "repetition_penalty": -1}', "expected a number from 0.1 to 10"),
        (PLAIN, b'{"model": "m", "prompt": "a", "presence_penalty": 1e300}', "expected a number from -2 to 2"),
        (PLAIN, b'{"model": "m", "prompt": "a", "frequency_penalty": -3}', "expected a number from -2 to 2"),
        (PLAIN, b'{"model": "m", "prompt": "a", "top_k": -2}', "expected a number from -1 to 2,147,483,647"),
        (PLAIN, b'{"model": "m", "prompt": "a", "top_k": 99999999999999999999}', "expected a number from -1"),
        (PLAIN, b'{"model": "m", "prompt": "a", "seed": 99999999999999999999}', "expected a number from -9,223,372"),
        (PLAIN, b'{"model": "m", "prompt": "a", "max_tokens": 0}', "expected a number from 1"),
        (PLAIN, b'{"model": "m", "prompt": "a", "min_tokens": -1}', "expected a number from 0"),
        (PLAIN, b'{"model": "m", "prompt": "a", "logprobs": 999}', "expected a number from 0 to 20"),
        (CHAT, b'{"model": "m", "messages": [], "top_logprobs": 21}', "expected a number from 0 to 20"),
        (PLAIN, json.dumps({"model": "m", "prompt": "a", "stop_token_ids": [1] * 1001}).encode(), "at most 1,000"),
        (PLAIN, b'{"model": "m", "prompt": "a", "chat_template_kwargs": {}}', "unknown field 'chat_template_kwargs'"),
        *(
            (
                CHAT,
                json.dumps({"model": "m", "chat_template_kwargs": settings}).encode(),
                "variables of the chat template",
            )
            for settings in ({"chat_template": "x"}, {"tokenize": True}, {"messages": []}, {"a b": 1}, {"a": {}}, [])
        ),
        (PLAIN, b'{"model": "m", "prompt": "a", "stop_token_ids": [4294967296]}', "a list of token ids"),
        (PLAIN, json.dumps({"model": "m", "prompt": "a", "stop": ["x"] * 65}).encode(), "at most 64 texts"),
        (PLAIN, b'{"model": "m", "prompt": "a", "logit_bias": {"a": 1}}', "an object of at most 1,000 token ids"),
        (PLAIN, b'{"model": "m", "prompt": "a", "logit_bias": {"7": 1e9}}', "with numbers from -100 to 100"),
        (CHAT, b'{"model": "m"}', "no messages; fix"),
        (CHAT, b'{"model": "m", "messages": "hi"}', "messages = 'hi': expected a list of messages"),
        (CHAT, b'{"model": "m", "messages": [{"role": "user"}]}', r"messages\[0\]: content = None: expected text"),
        (CHAT, b'{"model": "m", "messages": [{"role": "robot", "content": "a"}]}', r"messages\[0\]: role = 'robot'"),
        (CHAT, b'{"model": "m", "messages": [{"role": "user", "content": []}]}', "expected text"),
        *(
            (
                CHAT,
                json.dumps({"model": "m", "messages": [{**TURNS[0], field: value}]}).encode(),
                f"{field} = .*expected",
            )
            for field, value in [
                ("name", {"a": 1}),
                ("tool_call_id", [5]),
                ("refusal", 7),
                ("reasoning_content", 5),
                ("tool_calls", 5),
                ("tool_calls", "call"),
                ("tool_calls", [None]),
            ]
        ),
        (PLAIN, b'{"model": "m", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", "a number has too many digits"),
    ],
)
def test_what_no_engine_is_given(route, raw, said):
    with pytest.raises(RequestError, match=said) as caught:
        read_request(route, raw)
    assert caught.value.status == 400
    json.dumps(caught.value.to_json(), ensure_ascii=False).encode()  # it can be sent


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True},
        {"stream": False},
        {"stream": None},
        {"n": 16},
        {"prompt": list(range(500))},
        {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1.3, "seed": -(2**63)},
        {"logprobs": 0, "logit_bias": {"7": -100}, "stop": ["a"] * 64, "stop_token_ids": [0] * 1000},
        {"logprobs": True, "presence_penalty": -2, "frequency_penalty": 2, "max_tokens": 1, "min_tokens": 0},
    ],
)
def test_what_is_passed_on(more):
    asking = read_request(PLAIN, json.dumps({"model": "m", "prompt": "a", **more}).encode())
    assert asking.is_stream is (more.get("stream") is True)
    assert read_request(CHAT, json.dumps({"model": "m", "messages": TURNS}).encode()).model == "m"


@pytest.mark.bad_input
@pytest.mark.parametrize("count", [2049, 20_000])
def test_a_conversation_with_too_many_turns_is_refused(count):
    turns = [{"role": "user", "content": "hi"}] * count
    with pytest.raises(RequestError, match="more than 2,048 messages; fix") as refused:
        read_request(CHAT, json.dumps({"model": "m", "messages": turns}).encode())
    assert (refused.value.status, refused.value.code) == (413, "too_many_messages")
    escaped = json.dumps({"model": "m", "messages": turns}).replace("role", "r\\u006fle").encode()
    with pytest.raises(RequestError, match="more than 2,048 messages"):
        read_request(CHAT, escaped)
    text = {"role": "user", "content": '"role": ' * 3000}
    assert read_request(CHAT, json.dumps({"model": "m", "messages": [text] * 2048}).encode()).model == "m"
