"""What the engine answers, compared with Transformers and PEFT in this process."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from engine_process import EngineProcess
from tiny_adapters import KINDS

from mlflow_finetune_plugin.evaluation.generation import completion_log_probs, greedy_answers

pytestmark = pytest.mark.process

PROMPTS = ["Once upon a time", "The big red dog", "Tell me about rain, please. It was a dark night and"]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you? 日本 🎉"}]
STOPS = (2, 0)


def expected_ids(models: Any, name: str, prompt: list[int], tokens: int) -> list[int]:
    (answer,) = greedy_answers(models[name], [prompt], max_new_tokens=tokens, stop_token_ids=STOPS, pad_token_id=0)
    return answer


def joined(stream: Any) -> tuple[str, list[int], dict[str, Any]]:
    """Text, tokens and the last choice of a stream of one answer."""
    text, ids, last = "", [], {}
    for chunk in stream:
        for choice in chunk["choices"]:
            text += choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            ids += choice.get("token_ids") or []
            last = choice
    return text, ids, last


def test_greedy_answers_are_those_of_generate_alone_and_among_others(running: EngineProcess, models: Any) -> None:
    asked = [(name, models.tokenizer(prompt)["input_ids"]) for name in models.names for prompt in PROMPTS]
    expected = [expected_ids(models, name, prompt, 40) for name, prompt in asked]

    def answer(question: tuple[str, list[int]]) -> list[int]:
        name, prompt = question
        reply = running.post(
            "/v1/completions", model=name, prompt=prompt, temperature=0, max_tokens=40, return_token_ids=True
        )
        assert reply.status == 200, reply.text
        assert reply.json["model"] == name
        return [token for token in reply.json["choices"][0]["token_ids"] if token not in STOPS]

    assert [answer(question) for question in asked] == expected
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(answer, asked)) == expected
    of_each = [str(expected[i : i + len(PROMPTS)]) for i in range(0, len(expected), len(PROMPTS))]
    assert len(set(of_each)) == len(models.names)  # no two models say the same


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_stream_says_what_the_whole_answer_says(running: EngineProcess, models: Any, path: str) -> None:
    body = {"prompt": PROMPTS[0]} if path == "/v1/completions" else {"messages": CHAT}
    for name in models.names:
        settings = {"model": name, "temperature": 0, "max_tokens": 60, "return_token_ids": True, **body}
        whole = running.post(path, **settings).json["choices"][0]
        text, ids, last = joined(running.stream(path, **settings))
        assert text == (whole["text"] if "text" in whole else whole["message"]["content"])
        assert ids == whole["token_ids"]
        assert last["finish_reason"] == whole["finish_reason"]


def test_chats_are_rendered_by_the_chat_template(running: EngineProcess, models: Any) -> None:
    text = models.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    prompt = models.tokenizer(text, add_special_tokens=False)["input_ids"]
    body = {"model": "lora", "messages": CHAT, "temperature": 0, "max_tokens": 20, "return_token_ids": True}

    reply = running.post("/v1/chat/completions", **body).json

    assert reply["object"] == "chat.completion"
    assert reply["prompt_token_ids"] == prompt
    choice = reply["choices"][0]
    assert [token for token in choice["token_ids"] if token not in STOPS] == expected_ids(models, "lora", prompt, 20)
    assert choice["message"]["role"] == "assistant"
    assert reply["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(choice["token_ids"]),
        "total_tokens": len(prompt) + len(choice["token_ids"]),
    }
    parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, CHAT[1]]
    assert running.post("/v1/chat/completions", **body | {"messages": parts}).json["prompt_token_ids"] == prompt
    open_end = running.post("/v1/chat/completions", **body, add_generation_prompt=False).json["prompt_token_ids"]
    assert len(open_end) < len(prompt)


def test_a_chat_stream_has_openai_s_shape(running: EngineProcess) -> None:
    body = {"model": "base", "messages": CHAT, "temperature": 0, "max_tokens": 8}
    chunks = list(running.stream("/v1/chat/completions", **body, stream_options={"include_usage": True}))
    whole = running.post("/v1/chat/completions", **body).json
    assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "base")}
    assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
    assert chunks[0]["id"].startswith("chatcmpl-")
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]].count(None) == len(chunks) - 2
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert all("usage" not in chunk for chunk in running.stream("/v1/chat/completions", **body))


@pytest.mark.parametrize("name", ["base", *KINDS])
def test_prompt_logprobs_are_those_of_training(running: EngineProcess, models: Any, name: str) -> None:
    prompt, completion = (models.tokenizer(text)["input_ids"] for text in ("Once upon a time", " there was a dog."))
    (expected,) = completion_log_probs(models[name], [prompt], [completion], pad_token_id=0)

    reply = running.post("/v1/completions", model=name, prompt=prompt + completion, max_tokens=1, prompt_logprobs=0)

    told = reply.json["choices"][0]["prompt_logprobs"]
    assert told[0] is None
    assert [list(place) for place in told[1:]] == [[str(token)] for token in (prompt + completion)[1:]]
    found = [place[str(token)]["logprob"] for place, token in zip(told[len(prompt) :], completion, strict=True)]
    assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_prompt_logprobs_tell_the_likeliest_with_their_ranks(running: EngineProcess) -> None:
    reply = running.post("/v1/completions", model="base", prompt=[80, 522, 317], max_tokens=1, prompt_logprobs=2)
    for place, token in zip(reply.json["choices"][0]["prompt_logprobs"][1:], ("522", "317"), strict=True):
        assert {told["rank"] for told in place.values()} >= {1, 2}
        assert place[token]["decoded_token"] != ""
    chat = running.post("/v1/chat/completions", model="base", messages=CHAT, max_tokens=1, prompt_logprobs=0).json
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]


def test_logprobs_of_an_answer(running: EngineProcess, models: Any) -> None:
    body = {"model": "ia3", "temperature": 0, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
    chat = running.post("/v1/chat/completions", messages=CHAT, logprobs=True, top_logprobs=3, **body).json
    choice = chat["choices"][0]
    (expected,) = completion_log_probs(models["ia3"], [chat["prompt_token_ids"]], [choice["token_ids"]], pad_token_id=0)
    content = choice["logprobs"]["content"]
    assert [token["logprob"] for token in content] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [token["token"] for token in content] == [models.tokenizer.decode([token]) for token in choice["token_ids"]]
    for token in content:
        assert bytes(token["bytes"]).decode() == token["token"]
        assert len(token["top_logprobs"]) == 3
        assert token["top_logprobs"][0]["logprob"] == token["logprob"]  # greedy: the likeliest is the one chosen

    plain = running.post("/v1/completions", prompt=PROMPTS[0], logprobs=2, **body).json["choices"][0]["logprobs"]
    assert plain["text_offset"] == [len("".join(plain["tokens"][:i])) for i in range(6)]
    assert [max(top.values()) for top in plain["top_logprobs"]] == plain["token_logprobs"]
    streamed = [
        chunk["choices"][0]["logprobs"]
        for chunk in running.stream("/v1/completions", prompt=PROMPTS[0], logprobs=2, **body)
    ]
    assert [told for part in streamed for told in part["text_offset"]] == plain["text_offset"]
    assert [told for part in streamed for told in part["token_logprobs"]] == pytest.approx(plain["token_logprobs"])


def test_stop_texts_end_an_answer_and_never_show(running: EngineProcess) -> None:
    body = {"model": "base", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 60, "ignore_eos": True}
    text = running.post("/v1/completions", **body).json["choices"][0]["text"]
    stop = text[20:26]  # begins and ends within tokens
    cut = text[: text.index(stop)]
    choice = running.post("/v1/completions", **body, stop=["never said", stop]).json["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (cut, "stop", stop)
    streamed, _, last = joined(running.stream("/v1/completions", **body, stop=stop))
    assert (streamed, last["stop_reason"]) == (cut, stop)
    unmet, _, last = joined(running.stream("/v1/completions", **body, stop=text[-3:] + "\x00"))
    assert (unmet, last["finish_reason"]) == (text, "length")


def test_stop_tokens_end_of_text_and_length(running: EngineProcess, models: Any) -> None:
    body = {"model": "base", "prompt": PROMPTS[0], "temperature": 0, "return_token_ids": True, "ignore_eos": True}
    first = running.post("/v1/completions", **body).json
    ids = first["choices"][0]["token_ids"]
    assert len(ids) == first["usage"]["completion_tokens"] == 16  # OpenAI's default
    assert first["choices"][0]["finish_reason"] == "length"
    stopped = running.post("/v1/completions", **body, stop_token_ids=[ids[4]]).json["choices"][0]
    assert stopped["token_ids"] == ids[: ids.index(ids[4]) + 1]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", ids[4])
    chat = {"model": "base", "messages": CHAT, "temperature": 0, "return_token_ids": True}
    ended = running.post("/v1/chat/completions", **chat).json["choices"][0]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", None)
    assert ended["token_ids"][-1] in STOPS
    assert "<|" not in ended["message"]["content"]
    on = running.post("/v1/chat/completions", **chat, ignore_eos=True, skip_special_tokens=False).json
    assert on["usage"]["total_tokens"] == 512  # a chat goes on to the context's end
    assert on["choices"][0]["finish_reason"] == "length"
    assert "<|" in on["choices"][0]["message"]["content"]


def test_seeds_and_choices(running: EngineProcess) -> None:
    body = {"model": "base", "prompt": PROMPTS[:2], "max_tokens": 20, "ignore_eos": True, "n": 2, "seed": 3}
    first, again = (running.post("/v1/completions", **body).json for _ in range(2))
    texts = [choice["text"] for choice in first["choices"]]
    assert texts == [choice["text"] for choice in again["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2, 3]
    assert len(set(texts)) == 4
    assert first["usage"]["completion_tokens"] == 80
    streamed = [""] * 4
    for chunk in running.stream("/v1/completions", **body):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts
    other = running.post("/v1/completions", **body | {"seed": 4}).json
    assert [choice["text"] for choice in other["choices"]] != texts


def test_penalties_and_truncation_reach_the_sampler(running: EngineProcess) -> None:
    body = {"model": "base", "prompt": PROMPTS[0], "max_tokens": 60, "ignore_eos": True, "return_token_ids": True}

    def ids(**settings: Any) -> list[int]:
        return running.post("/v1/completions", **body, **settings).json["choices"][0]["token_ids"]

    greedy = ids(temperature=0)
    assert greedy == ids(temperature=1.7, top_k=1) == ids(temperature=1.7, top_p=1e-6) == ids(temperature=1.7, min_p=1)
    assert len(set(ids(temperature=0, presence_penalty=2, frequency_penalty=2))) > len(set(greedy))
    assert len(set(ids(temperature=0, repetition_penalty=2))) > len(set(greedy))


def test_logprobs_are_never_infinite(running: EngineProcess) -> None:
    reply = running.post("/v1/completions", model="base", prompt=[1, 2, 3, 1000], max_tokens=3, logprobs=20)
    told = [value for top in reply.json["choices"][0]["logprobs"]["top_logprobs"] for value in top.values()]
    assert all(math.isfinite(value) for value in told)
