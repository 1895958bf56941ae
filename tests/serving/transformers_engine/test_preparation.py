"""Prompts of the packaged base and of other tokenizers, rendered and tokenized in threads."""

import asyncio
import threading

import pytest
from engine_process import EMBEDDED
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import NFC, Lowercase
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlflow_finetune_plugin.serving.transformers_engine.preparation import Preparation, _longest_token
from mlflow_finetune_plugin.serving.transformers_engine.protocol import ChatRequest, CompletionRequest


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED)


def chat(text):
    return ChatRequest(model="m", messages=[{"role": "user", "content": text}])


def test_a_large_prompt_delays_no_small_one(tokenizer):
    free = threading.Event()

    async def scenario():
        preparation = Preparation(tokenizer, 10**6)
        try:
            blocked = asyncio.create_task(preparation._large.run(lambda _: free.wait(60)))
            turns = [{"role": ("user", "assistant")[number % 2], "content": "hi"} for number in range(101)]
            large = [chat("card " * 10_000), ChatRequest(model="m", messages=turns)]
            large.append(CompletionRequest(model="m", prompt=["card " * 10_000, "card"]))
            waiting = [asyncio.create_task(preparation.prompts(request)) for request in large]
            small = await preparation.prompts(chat("where is my card?"))
            both = await preparation.prompts(CompletionRequest(model="m", prompt=["one", "two"]))
            assert (len(small), len(both)) == (1, 2)
            assert not any(task.done() for task in waiting)
            free.set()
            await blocked
            assert [len(ids) for ids in await asyncio.gather(*waiting)] == [1, 1, 2]
        finally:
            free.set()
            preparation.close()

    asyncio.run(scenario())


@pytest.mark.bad_input
@pytest.mark.parametrize("field", ["tools", "chat_template_kwargs", "reasoning_content"])
def test_a_large_field_beside_the_text_delays_no_small_prompt(tokenizer, field):
    long = "card " * 10_000
    turn = {"role": "user", "content": "hi"}
    fields = {
        "tools": {"tools": [{"type": "function", "function": {"name": "f", "description": long}}]},
        "chat_template_kwargs": {"chat_template_kwargs": {"mood": long}},
        "reasoning_content": {"messages": [{"role": "assistant", "content": "x", "reasoning_content": long}, turn]},
    }
    free = threading.Event()

    async def scenario():
        preparation = Preparation(tokenizer, 10**6)
        try:
            blocked = asyncio.create_task(preparation._large.run(lambda _: free.wait(60)))
            large = ChatRequest(**{"model": "m", "messages": [turn], **fields[field]})
            waiting = asyncio.create_task(preparation.prompts(large))
            await asyncio.sleep(0)  # it is in its queue before the small one
            await preparation.prompts(chat("where is my card?"))
            assert not waiting.done()
            free.set()
            await asyncio.gather(blocked, waiting)
        finally:
            free.set()
            preparation.close()

    asyncio.run(scenario())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("{{ 100 // level }}", {"chat_template_kwargs": {"level": 0}}),
        ("{{ 'x'.split(mood) }}", {"chat_template_kwargs": {"mood": ""}}),
        ("{{ level }}", {"chat_template_kwargs": {"level": 10**4300}}),
        ("{{ '%s %s' % mood }}", {"chat_template_kwargs": {"mood": "x"}}),
        ("{% for name in messages[0].tool_calls %}{{ name.function }}{% endfor %}", {"tool_calls": 5}),
        ("", {"tool_calls": [{"function": {"name": "f", "arguments": "[" * 100_000}}]}),
        ("", {"tool_calls": [{"function": {"name": "f", "arguments": '{"a":' * 900 + "1" + "}" * 900}}]}),
        ("", {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": NaN}'}}]}),
    ],
)
def test_what_a_template_cannot_render_is_a_refusal_and_no_failure_of_the_version(tokenizer, template, fields):
    turn = {"role": "assistant", "content": "x"}
    turn |= {name: value for name, value in fields.items() if name == "tool_calls"}
    kwargs = fields.get("chat_template_kwargs")
    request = ChatRequest(model="m", messages=[turn], chat_template_kwargs=kwargs)
    changed = AutoTokenizer.from_pretrained(EMBEDDED)
    changed.chat_template = template
    preparation = Preparation(changed, 1000)
    try:
        with pytest.raises(ValueError, match="messages: "):
            asyncio.run(preparation.prompts(request))
    finally:
        preparation.close()


@pytest.mark.bad_input
def test_a_prompt_that_cannot_fit_is_refused_before_it_is_rendered(tokenizer):
    longest = _longest_token(tokenizer)
    preparation = Preparation(tokenizer, 100)
    for request in (chat("a" * (100 * longest + 1)), CompletionRequest(model="m", prompt="a" * (100 * longest + 1))):
        with pytest.raises(
            ValueError, match=r"characters leave no room for an answer in the context length of 100; fix"
        ):
            asyncio.run(preparation.prompts(request))
    assert asyncio.run(preparation.prompts(chat("a" * (100 * longest))))
    preparation.close()


def test_no_token_is_longer_than_the_longest(tokenizer):
    longest = _longest_token(tokenizer)
    texts = [token * 50 for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    assert all(len(text) <= longest * len(tokenizer(text)["input_ids"]) for text in texts)


def test_tokenizers_that_may_drop_characters_have_no_longest_token():
    def tokenizer_of(model, normalizer=None):
        backend = Tokenizer(model)
        backend.normalizer = normalizer
        return PreTrainedTokenizerFast(tokenizer_object=backend)

    vocabulary = {"a": 0, "b": 1, "ab": 2}
    assert _longest_token(tokenizer_of(BPE(vocabulary, [("a", "b")]))) == 2
    assert _longest_token(tokenizer_of(BPE(vocabulary, [("a", "b")]), NFC())) == 8
    assert _longest_token(tokenizer_of(BPE(vocabulary, [("a", "b")]), Lowercase())) is None
    assert _longest_token(tokenizer_of(BPE(vocabulary, [("a", "b")], unk_token="a", fuse_unk=True))) is None
    assert _longest_token(tokenizer_of(WordLevel(vocabulary, unk_token="a"))) is None
