"""Tools, reasoning and template settings through the chat templates of real models, against ``apply_chat_template``."""

import pytest
from data_requests import jsonl, request

from mlflow_finetune_plugin.data import prepare
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.turns.chat import with_tools
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import BaseModelError

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TURNS = [
    {"role": "user", "content": "How is Rome?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny, 25 degrees"},
    {"role": "assistant", "content": "Warm and dry."},
]
THOUGHT = [
    {"role": "user", "content": "Name a fruit."},
    {"role": "assistant", "content": "A pear.", "reasoning_content": "It grows on trees."},
]


def learnt(renderer, example):
    ids = [token for token, mask in zip(example.input_ids, example.loss_mask, strict=True) if mask]
    return renderer.tokenizer.decode(ids)


def served_prompt(renderer, turns, **fields):
    options = {"chat_template": renderer.chat_template, "return_dict": False, "add_generation_prompt": True}
    return renderer.tokenizer.apply_chat_template(turns, **options, **fields)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("qwen2_5", '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'),
        ("qwen3", '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call><|im_end|>'),
        ("llama3_1", '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>'),
        ("llama3_2", '{"name": "weather", "parameters": {"city": "Rome"}}<|eot_id|>'),
    ],
)
def test_calls_are_learnt_as_the_template_writes_them(byte_tokenizer, chat_template, name, first):
    renderer = ChatRenderer(byte_tokenizer, chat_template(name))
    (call,) = renderer.encode(with_tools(TURNS[:2], [TOOL]))
    assert learnt(renderer, call).endswith(first)
    start, _ = call.last_turn()
    assert call.input_ids[:start] == served_prompt(renderer, TURNS[:1], tools=[TOOL])
    last = renderer.encode(with_tools(TURNS, [TOOL]))[-1]
    start, _ = last.last_turn()
    assert last.input_ids[:start] == served_prompt(renderer, TURNS[:-1], tools=[TOOL])
    assert "sunny, 25 degrees" in byte_tokenizer.decode(last.input_ids[:start])
    assert (
        renderer.tokenizer.decode(last.input_ids[start:]).strip().startswith(renderer.answer_prefix + "Warm and dry.")
    )


@pytest.mark.parametrize(
    ("name", "call", "ends"),
    [
        ("gptoss", '{"city": "Rome"}<|call|>', ["<|return|>", "<|endoftext|>", "<|call|>"]),
        ("gemma4", "<tool_call|><|tool_response>", ["<turn|>", "<|endoftext|>", "<|tool_response>"]),
    ],
)
def test_a_call_ends_with_a_token_of_its_own_where_the_template_has_one(
    byte_tokenizer, chat_template, name, call, ends
):
    renderer = ChatRenderer(byte_tokenizer, chat_template(name))
    assert byte_tokenizer.convert_ids_to_tokens(list(renderer.stop_token_ids)) == ends
    (example,) = renderer.encode(with_tools(TURNS[:2], [TOOL]))
    assert learnt(renderer, example).endswith(call)
    examples = renderer.encode(with_tools(TURNS, [TOOL]))
    assert any(call in learnt(renderer, example) for example in examples)
    assert learnt(renderer, examples[-1]).endswith(f"Warm and dry.{ends[0]}")
    with pytest.raises(RowFault, match="stop token"):
        renderer.encode([THOUGHT[0], {"role": "assistant", "content": f"It is {ends[2]}."}])


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "llama3_2", "lfm2", "cohere2"])
def test_a_call_ends_as_an_answer_where_the_template_does_not_tell_them_apart(byte_tokenizer, chat_template, name):
    renderer = ChatRenderer(byte_tokenizer, chat_template(name))
    assert len(renderer.stop_token_ids) == 2


@pytest.mark.parametrize("template", ["gemma3", "phi3", "llama3", None])
def test_a_template_that_takes_no_tools_refuses_them_by_name(byte_tokenizer, chat_template, template):
    renderer = ChatRenderer(byte_tokenizer, chat_template(template) if template else None)
    ignore, remove = r"data\.ignore: \[tools\]$", "remove the conversations that call tools from the file$"
    for turns, fix in (
        (with_tools(TURNS[:2], [TOOL]), remove),
        (with_tools([TURNS[0], TURNS[3]], [TOOL]), ignore),
        (tuple(TURNS[:2]), remove),
    ):
        with pytest.raises(RowFault, match=rf"template takes no tools: .*{fix}") as caught:
            renderer.encode(turns)
        assert "weather" in caught.value.detail or template is None


def test_conversations_of_one_batch_have_their_own_tools(byte_tokenizer, chat_template):
    renderer = ChatRenderer(byte_tokenizer, chat_template("qwen2_5"))
    other = {"type": "function", "function": {**TOOL["function"], "name": "clock"}}
    rows = [with_tools(TURNS, [TOOL]), tuple(THOUGHT), with_tools([TURNS[0], TURNS[3]], [other])]
    assert renderer.encode_batch(rows) == [renderer.encode(row) for row in rows]
    texts = [byte_tokenizer.decode(examples[-1].input_ids) for examples in renderer.encode_batch(rows)]
    assert ["clock" in text for text in texts] == [False, False, True]


# reasoning -----------------------------------------------------------------------------------------------------------


def test_reasoning_is_learnt_where_the_template_writes_it(byte_tokenizer, chat_template):
    renderer = ChatRenderer(byte_tokenizer, chat_template("qwen3"))
    (example,) = renderer.encode(THOUGHT)
    assert renderer.writes_reasoning
    assert learnt(renderer, example) == "<think>\nIt grows on trees.\n</think>\n\nA pear.<|im_end|>"
    plain = ChatRenderer(byte_tokenizer, chat_template("qwen2_5"))
    (example,) = plain.encode(THOUGHT)
    assert not plain.writes_reasoning
    assert learnt(plain, example) == "A pear.<|im_end|>"


def test_a_field_with_another_name_reaches_the_template(byte_tokenizer, chat_template):
    template = chat_template("qwen3").replace("reasoning_content", "thinking")
    renderer = ChatRenderer(byte_tokenizer, template)
    assert learnt(renderer, renderer.encode(THOUGHT)[0]).startswith("<think>\nIt grows on trees.\n</think>")


def test_report_says_that_reasoning_is_left_out(tmp_path, byte_tokenizer, chat_template):
    train = jsonl(tmp_path / "a.jsonl", [{"messages": THOUGHT}] * 3)
    held_out = request(train).train
    reports = {
        name: prepare(
            request(train, held_out), ChatRenderer(byte_tokenizer, chat_template(name)), tmp_path / name
        ).report
        for name in ("qwen2_5", "qwen3")
    }
    left_out = "6 turns hold reasoning, which is left out because the chat template does not write it"
    assert [left_out in reports[name].notes for name in ("qwen2_5", "qwen3")] == [True, False]


def test_held_out_calls_are_compared_with_what_the_model_has_to_write(tmp_path, byte_tokenizer, chat_template):
    row = {"messages": TURNS[:2], "tools": [TOOL]}
    train = jsonl(tmp_path / "a.jsonl", [row] * 3)
    renderer = ChatRenderer(byte_tokenizer, chat_template("qwen3"))
    prepared = prepare(request(train, request(train).train), renderer, tmp_path / "out")
    held_out = prepared.eval_rows[0]
    # The tags around it are special tokens of this tokenizer, and answers are read without those.
    assert held_out.reference == '{"name": "weather", "arguments": {"city": "Rome"}}'
    assert held_out.turns == with_tools(TURNS[:2], [TOOL])
    assert prepared.report.leaked_rows == 3


# settings of the template --------------------------------------------------------------------------------------------


def test_settings_are_part_of_the_template_and_a_request_may_override_them(byte_tokenizer, chat_template):
    renderer = ChatRenderer(byte_tokenizer, chat_template("qwen3"), template_settings={"enable_thinking": False})
    (example,) = renderer.encode([THOUGHT[0], {"role": "assistant", "content": "A pear."}])
    assert (learnt(renderer, example), renderer.answer_prefix) == ("A pear.<|im_end|>", "")
    start, _ = example.last_turn()
    assert example.input_ids[:start] == served_prompt(renderer, THOUGHT[:1])
    assert byte_tokenizer.decode(example.input_ids[:start]).endswith("<think>\n\n</think>\n\n")
    other = byte_tokenizer.decode(served_prompt(renderer, THOUGHT[:1], enable_thinking=True))
    assert "<think>" not in other
    plain = ChatRenderer(byte_tokenizer, chat_template("qwen3"))
    assert other == byte_tokenizer.decode(served_prompt(plain, THOUGHT[:1]))
    assert any("enable_thinking: False" in note for note in renderer.notes)


@pytest.mark.parametrize("value", [True, 3, 0.5, 'a "quoted" %} text\n', "é🎉"])
def test_a_setting_keeps_its_value(byte_tokenizer, value):
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' ~ mood }}{% endif %}"
    )
    renderer = ChatRenderer(byte_tokenizer, template, template_settings={"mood": value})
    prompt = byte_tokenizer.decode(served_prompt(renderer, THOUGHT[:1]))
    assert prompt == f"<|im_start|>user\nName a fruit.<|im_end|>\n<|im_start|>assistant\n{value}"


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "not a name"])
def test_a_setting_that_the_template_does_not_read_is_refused(byte_tokenizer, chat_template, name):
    with pytest.raises(BaseModelError, match=f"the chat template reads no setting '{name}'"):
        ChatRenderer(byte_tokenizer, chat_template("qwen3"), template_settings={name: False})


# templates that rewrite the prompt -----------------------------------------------------------------------------------


def test_a_prompt_that_the_template_rewrites_is_trained_as_it_is_served(byte_tokenizer, chat_template):
    renderer = ChatRenderer(byte_tokenizer, chat_template("deepseek_r1_distill"))
    assert renderer.rewrites_prompt
    turns = [THOUGHT[0], {"role": "assistant", "content": "A pear."}]
    (example,) = renderer.encode(turns)
    start, _ = example.last_turn()
    assert example.input_ids[:start] == served_prompt(renderer, turns[:1])
    assert learnt(renderer, example).startswith("A pear.")
    assert any("changes the prompt" in note for note in renderer.notes)
