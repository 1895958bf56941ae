"""Masks and ids against an independent oracle: ``apply_chat_template(tokenize=True)`` of the prompt alone."""

import random

import pytest

from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.data.conversations.templates import DEFAULT_TEMPLATE
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import BaseModelError

SINGLE = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "A pear."}]
DOUBLE = [*SINGLE, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because of that."}]
SYSTEM = {"role": "system", "content": "You are a model."}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokens(renderer, example):
    return list(zip(renderer.tokenizer.convert_ids_to_tokens(example.input_ids), example.loss_mask, strict=True))


def learnt(renderer, example):
    ids = [token for token, mask in zip(example.input_ids, example.loss_mask, strict=True) if mask]
    return renderer.tokenizer.decode(ids)


def prompt_ids(renderer, messages):
    """The ids that a server feeds the model for ``messages``."""
    options = {"chat_template": renderer.chat_template, "return_dict": False, "add_generation_prompt": True}
    return renderer.tokenizer.apply_chat_template(messages, **options)


def oracle(renderer, messages):
    """Return the ids of the prompt, the ids of the whole, and the mask, which covers everything after the prompt to the end of turn."""
    options = {"chat_template": renderer.chat_template, "return_dict": False}
    prompt = prompt_ids(renderer, messages[:-1])
    whole = renderer.tokenizer.apply_chat_template(messages, **options)
    assert whole[: len(prompt)] == prompt
    end = whole.index(renderer.end_of_turn_token_id, len(prompt)) + 1
    return prompt, whole, [0] * len(prompt) + [1] * (end - len(prompt)) + [0] * (len(whole) - end)


# the default template ------------------------------------------------------------------------------------------------


def test_default_template_of_a_real_base_model_by_hand(stories_tokenizer):
    renderer = ChatRenderer(stories_tokenizer)
    assert renderer.template_source == "default"
    assert renderer.chat_template == "{{ bos_token }}" + DEFAULT_TEMPLATE
    assert (renderer.end_of_turn_token_id, renderer.stop_token_ids, renderer.answer_prefix) == (1, (1,), "")
    messages = [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "Hi, you!"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Bee."},
    ]
    (example,) = renderer.encode(messages)
    assert tokens(renderer, example) == [
        *[("<s>", 0), ("▁He", 0), ("ll", 0), ("o", 0), ("▁there", 0), ("<0x0A>", 0)],
        *[("H", 1), ("i", 1), (",", 1), ("▁you", 1), ("!", 1), ("<s>", 1)],
        *[("▁", 0), ("W", 0), ("h", 0), ("y", 0), ("?", 0), ("<0x0A>", 0)],
        *[("B", 1), ("e", 1), ("e", 1), (".", 1), ("<s>", 1)],
    ]
    assert example.last_turn() == (18, 23)
    assert prompt_ids(renderer, messages[:-1]) == example.input_ids[:18]


def test_default_template_writes_bos_only_where_the_tokenizer_would(byte_tokenizer, llama2_tokenizer):
    assert ChatRenderer(byte_tokenizer).chat_template == DEFAULT_TEMPLATE
    renderer = ChatRenderer(llama2_tokenizer)
    (example,) = renderer.encode(SINGLE)
    assert tokens(renderer, example)[0] == ("<s>", 0)
    assert tokens(renderer, example)[-1] == ("</s>", 1)
    assert learnt(renderer, example) == "A pear.</s>"


def test_system_turn_is_a_line_of_the_default_template(byte_tokenizer):
    renderer = ChatRenderer(byte_tokenizer)
    (example,) = renderer.encode([SYSTEM, *SINGLE])
    whole = byte_tokenizer.decode(example.input_ids)
    assert whole == "You are a model.\nName a fruit.\nA pear.<|endoftext|>"
    assert learnt(renderer, example) == "A pear.<|endoftext|>"


def test_template_sources_rank_given_then_tokenizer_then_default(byte_tokenizer):
    assert ChatRenderer(byte_tokenizer, CHATML).template_source == "given"
    byte_tokenizer.chat_template = CHATML
    try:
        renderer = ChatRenderer(byte_tokenizer)
        assert (renderer.template_source, renderer.chat_template) == ("tokenizer", CHATML)
    finally:
        byte_tokenizer.chat_template = None


# the templates of real models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "end_of_turn", "written", "prefix"),
    [
        ("qwen2_5", "<|im_end|>", "A pear.<|im_end|>", ""),
        ("qwen3", "<|im_end|>", "<think>\n\n</think>\n\nA pear.<|im_end|>", "<think>\n\n</think>\n\n"),
        ("qwen3_instruct_2507", "<|im_end|>", "A pear.<|im_end|>", ""),
        ("qwen3_5_nothink", "<|im_end|>", "A pear.<|im_end|>", ""),
        ("qwen3_5_think", "<|im_end|>", "\n</think>\n\nA pear.<|im_end|>", "\n</think>\n\n"),
        ("llama3", "<|eot_id|>", "A pear.<|eot_id|>", ""),
        ("llama3_1", "<|eot_id|>", "A pear.<|eot_id|>", ""),
        ("llama3_2", "<|eot_id|>", "A pear.<|eot_id|>", ""),
        ("gemma", "<end_of_turn>", "A pear.<end_of_turn>", ""),
        ("gemma3", "<end_of_turn>", "A pear.<end_of_turn>", ""),
        ("gemma4", "<turn|>", "A pear.<turn|>", ""),
        ("phi3", "<|end|>", "A pear.<|end|>", ""),
        ("cohere", "<|END_OF_TURN_TOKEN|>", "A pear.<|END_OF_TURN_TOKEN|>", ""),
        ("lfm2", "<|im_end|>", "A pear.<|im_end|>", ""),
        ("gptoss", "<|return|>", "<|channel|>final<|message|>A pear.<|return|>", "<|channel|>final<|message|>"),
        ("glm4moe", "<|endoftext|>", "\n<think></think>\nA pear.<|endoftext|>", "\n<think></think>\n"),
    ],
)
def test_real_template_against_the_oracle(byte_tokenizer, chat_template, name, end_of_turn, written, prefix):
    renderer = ChatRenderer(byte_tokenizer, chat_template(name))
    assert byte_tokenizer.convert_ids_to_tokens(renderer.end_of_turn_token_id) == end_of_turn
    assert renderer.answer_prefix == prefix
    assert byte_tokenizer.eos_token_id in renderer.stop_token_ids
    (example,) = renderer.encode(SINGLE)
    assert learnt(renderer, example) == written
    if renderer.appends_eos or example.is_boundary_split:
        assert example.input_ids[: example.last_turn()[0]] == prompt_ids(renderer, SINGLE[:-1])
        return
    _, whole, mask = oracle(renderer, SINGLE)
    assert example.input_ids == whole
    assert example.loss_mask == mask


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "llama3_1", "gemma3", "gemma4", "cohere", "lfm2"])
def test_turns_that_change_nothing_are_one_example(byte_tokenizer, chat_template, name):
    renderer = ChatRenderer(byte_tokenizer, chat_template(name))
    (example,) = renderer.encode(DOUBLE)
    prompt, whole, last_turn_mask = oracle(renderer, DOUBLE)
    _, first, first_mask = oracle(renderer, DOUBLE[:2])
    assert example.input_ids == whole
    assert example.input_ids[: len(first)] == first
    assert example.loss_mask == [*first_mask, *last_turn_mask[len(first) :]]
    assert example.input_ids[: example.last_turn()[0]] == prompt


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gptoss", "qwen3_5_think"])
def test_templates_that_rewrite_history_are_unrolled(byte_tokenizer, chat_template, name):
    renderer = ChatRenderer(byte_tokenizer, chat_template(name))
    examples = renderer.encode(DOUBLE)
    assert len(examples) == 2
    for example, messages in zip(examples, (DOUBLE[:2], DOUBLE), strict=True):
        prompt = prompt_ids(renderer, messages[:-1])
        assert example.input_ids[: len(prompt)] == prompt
        assert sum(example.loss_mask[: len(prompt)]) == 0
        assert messages[-1]["content"] in learnt(renderer, example)
        if not example.is_boundary_split:
            _, whole, mask = oracle(renderer, messages)
            assert (example.input_ids, example.loss_mask) == (whole, mask)


def test_reasoning_in_an_answer_is_learnt(byte_tokenizer, chat_template):
    messages = [SINGLE[0], {"role": "assistant", "content": "<think>hm</think>A pear."}]
    (example,) = ChatRenderer(byte_tokenizer, chat_template("qwen3")).encode(messages)
    written = learnt(ChatRenderer(byte_tokenizer, chat_template("qwen3")), example)
    assert written == "<think>\nhm\n</think>\n\nA pear.<|im_end|>"
    thinking = ChatRenderer(byte_tokenizer, chat_template("qwen3_5_think"))
    assert learnt(thinking, thinking.encode(messages)[0]) == "hm\n</think>\n\nA pear.<|im_end|>"


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "gemma3", "phi3", "lfm2", "cohere"])
def test_every_template_loses_nothing_of_random_conversations(byte_tokenizer, chat_template, name):
    check_random_conversations(ChatRenderer(byte_tokenizer, chat_template(name)), 30, exact_text=True)


def test_random_conversations_with_the_default_template(byte_tokenizer, gpt2_tokenizer, llama2_tokenizer):
    check_random_conversations(ChatRenderer(gpt2_tokenizer), 150, exact_text=True)
    check_random_conversations(ChatRenderer(gpt2_tokenizer, template_of_blanks()), 150, exact_text=True)
    check_random_conversations(ChatRenderer(byte_tokenizer), 150, exact_text=True)
    check_random_conversations(ChatRenderer(llama2_tokenizer), 150, exact_text=False)


def test_random_conversations_with_real_tokenizers(real_tokenizer):
    check_random_conversations(ChatRenderer(real_tokenizer), 150, exact_text=False)
    check_random_conversations(ChatRenderer(real_tokenizer, CHATML), 50, exact_text=False)


def template_of_blanks():
    """A template whose generation prompt ends with two line breaks, which GPT-2 cuts by what follows."""
    return CHATML.replace("assistant\\n'", "assistant\\n\\n'").replace("m['role'] + '\\n'", "m['role'] + '\\n\\n'")


def random_conversation(dice):
    pieces = ["a", "yes", " ", "  ", "\n", "\n\n", "\t", ".", "42", "é", "日本", "🙂", "the fox", "'s", "...", "-", ":"]

    def text():
        inner = "".join(dice.choice(pieces) for _ in range(dice.randint(0, 6)))
        return inner if inner.strip() else inner + "word"

    turns = []
    for _ in range(dice.randint(1, 3)):
        turns += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
    return turns


def check_random_conversations(renderer, count, exact_text):
    """Check that each turn's prompt is what inference sees and its answer is what carries loss, whatever happens at the borders."""
    dice = random.Random(0)
    conversations = [random_conversation(dice) for _ in range(count)]
    stop = renderer.tokenizer.decode([renderer.end_of_turn_token_id])
    for messages, examples in zip(conversations, renderer.encode_batch(conversations), strict=True):
        assert not isinstance(examples, RowFault), (messages, examples)
        ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        assert len(examples) in (1, len(ends))
        for turn, end in enumerate(ends):
            example = examples[turn] if len(examples) == len(ends) else examples[0]
            starts = [i for i, m in enumerate(example.loss_mask) if m and not example.loss_mask[i - 1]]
            start = starts[-1] if len(examples) == len(ends) else starts[turn]
            assert example.input_ids[:start] == prompt_ids(renderer, messages[:end])
            stop_at = example.input_ids.index(renderer.end_of_turn_token_id, start)
            assert all(example.loss_mask[start : stop_at + 1])
            assert not any(example.loss_mask[stop_at + 1 : stop_at + 2])
            if exact_text:
                written = renderer.tokenizer.decode(example.input_ids[start : stop_at + 1])
                assert messages[end]["content"].strip() in written
                assert written.endswith(stop)


def test_batches_give_what_single_conversations_give(byte_tokenizer):
    renderer = ChatRenderer(byte_tokenizer)
    dice = random.Random(1)
    conversations = [random_conversation(dice) for _ in range(40)]
    assert renderer.encode_batch(conversations) == [renderer.encode(messages) for messages in conversations]


# borders of tokens ---------------------------------------------------------------------------------------------------


def test_blanks_that_are_cut_differently_at_the_end_of_a_prompt(gpt2_tokenizer):
    """GPT-2 cuts "\\n\\n" before a word into two tokens and at the end of a text into one; no token straddles."""
    renderer = ChatRenderer(gpt2_tokenizer)
    (example,) = renderer.encode([{"role": "user", "content": "Why?\n"}, {"role": "assistant", "content": "yes"}])
    assert gpt2_tokenizer.tokenize("Why?\n\nyes")[-5:] == ["?", "Ċ", "Ċ", "y", "es"]
    assert [token for token, _ in tokens(renderer, example)][-5:] == ["?", "ĊĊ", "y", "es", "<|endoftext|>"]
    assert example.is_boundary_split
    assert learnt(renderer, example) == "yes<|endoftext|>"


def test_token_that_straddles_the_answers_start(tinystories_tokenizer):
    """This tokenizer has one token for ".\\nBut " as a whole."""
    renderer = ChatRenderer(tinystories_tokenizer)
    messages = [{"role": "user", "content": "He was sad."}, {"role": "assistant", "content": "But then"}]
    (example,) = renderer.encode(messages)
    assert tinystories_tokenizer.tokenize("He was sad.\nBut then")[-2:] == [".\nBut▁", "then"]
    assert tokens(renderer, example)[-4:] == [(".\n", 0), ("But▁", 1), ("then", 1), ("<|end_story|>", 1)]
    assert example.is_boundary_split


def test_generation_prompt_that_ends_with_a_blank(llama2_tokenizer):
    """The blank and the answer's first word are one token when together; inference sees the blank alone."""
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Q: ' + m['content'] + ' A: ' }}"
        "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    renderer = ChatRenderer(llama2_tokenizer, template)
    (example,) = renderer.encode([{"role": "user", "content": "yes"}, {"role": "assistant", "content": "fruit"}])
    assert example.is_boundary_split
    assert (
        example.input_ids[: example.last_turn()[0]]
        == llama2_tokenizer("<s>Q: yes A: ", add_special_tokens=False).input_ids
    )
    assert learnt(renderer, example) == "fruit</s>"


def test_text_that_cannot_be_parted_is_a_fault(byte_tokenizer):
    """A normaliser that joins the prompt's last letter with the answer's first mark leaves no border at all."""
    import copy

    from tokenizers import normalizers

    composing = copy.deepcopy(byte_tokenizer)
    composing.backend_tokenizer.normalizer = normalizers.NFC()
    template = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    renderer = ChatRenderer(composing, template)
    with pytest.raises(RowFault, match="tokens straddle the answer's start"):
        renderer.encode([{"role": "user", "content": "caf e"}, {"role": "assistant", "content": "\u0301 yes"}])


# faults --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "messages", "expected"),
    [
        (CHATML, [SINGLE[0], {"role": "assistant", "content": "A pear.<|im_end|>"}], "stop token inside the answer"),
        (CHATML, [SINGLE[0], {"role": "assistant", "content": "A pear.<|endoftext|>"}], "stop token inside the answer"),
        (CHATML, [SINGLE[0]], "no assistant turn"),
        (
            CHATML.replace("assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif").replace(
                "m['content']", "m['content'].replace(' ', '  ')"
            ),
            SINGLE,
            "template breaks the prefix",
        ),
        (CHATML.replace("m['content']", "m['content'][:7]"), SINGLE, "template drops content"),
        (CHATML.replace("m['content']", "m['content'].split('.')[0]"), SINGLE, "template drops content"),
        (
            "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}" + CHATML,
            [SYSTEM, *SINGLE],
            "template drops content",
        ),
    ],
)
def test_fault_of_a_conversation(byte_tokenizer, template, messages, expected):
    with pytest.raises(RowFault) as caught:
        ChatRenderer(byte_tokenizer, template).encode(messages)
    assert caught.value.reason == expected


def test_template_that_refuses_says_so_for_that_row_alone(byte_tokenizer, chat_template):
    renderer = ChatRenderer(byte_tokenizer, chat_template("gemma"))
    good, bad, also_good = renderer.encode_batch([SINGLE, [SYSTEM, *SINGLE], DOUBLE])
    assert (bad.reason, bad.detail) == ("template refuses", "System role not supported")
    assert (len(good), len(also_good)) == (1, 1)


def test_special_tokens_in_a_question_do_not_move_the_mask(byte_tokenizer):
    renderer = ChatRenderer(byte_tokenizer, CHATML)
    (example,) = renderer.encode([{"role": "user", "content": "What is <|im_end|>?"}, SINGLE[1]])
    assert learnt(renderer, example) == "A pear.<|im_end|>"


def test_template_without_stop_token_gets_the_eos_token_and_is_unrolled(byte_tokenizer):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    renderer = ChatRenderer(byte_tokenizer, template)
    assert renderer.appends_eos
    assert renderer.notes == (
        "the chat template does not end answers with a stop token, so <|endoftext|> is appended to each answer and trained on",
        "the chat template writes ' ' before each answer, and the model learns to write it",
    )
    first, second = renderer.encode(DOUBLE)
    assert learnt(renderer, first) == " A pear.<|endoftext|>"
    assert learnt(renderer, second) == " Because of that.<|endoftext|>"
    assert byte_tokenizer.eos_token_id not in second.input_ids[:-1]


_DATE = "{% if messages[0]['role'] != 'system' %}{{ strftime_now('%d %b %Y') }}{% endif %}"


@pytest.mark.parametrize(
    ("start", "settings", "notes"),
    [
        (
            "{{ strftime_now('%Y') }}",
            {},
            ["the chat template writes the current date into prompts, so these change every day"],
        ),
        (
            _DATE,
            {},
            ["the chat template writes the current date into prompts without a system turn, so these change every day"],
        ),
        ("{% set today = strftime_now('%Y') %}", {}, []),
        ("{% if tools and strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}", {}, []),
        (
            "{% if day is not defined %}{% set day = strftime_now('%Y') %}{% endif %}{{ day }}",
            {"day": "Monday"},
            ["the chat template is rendered with day: 'Monday', unless a request says otherwise"],
        ),
    ],
)
def test_only_a_template_that_writes_todays_date_is_noted(byte_tokenizer, start, settings, notes):
    renderer = ChatRenderer(byte_tokenizer, start + CHATML, template_settings=settings)
    assert list(renderer.notes) == notes


# what cannot be a renderer -------------------------------------------------------------------------------------------


def test_slow_tokenizer_is_refused():
    from transformers import CanineTokenizer

    with pytest.raises(BaseModelError, match=r"CanineTokenizer is a slow tokenizer.*tokenizer\.json"):
        ChatRenderer(CanineTokenizer())


def test_tokenizer_without_eos_is_refused(byte_tokenizer):
    import copy

    endless = copy.deepcopy(byte_tokenizer)
    endless.eos_token = None
    with pytest.raises(BaseModelError, match="has no eos_token"):
        ChatRenderer(endless)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "fails on one question with one answer"),
        ("{{ raise_exception('never') }}", "fails on one question with one answer: never"),
        ("nothing of it", "leaves out the assistant's answer"),
    ],
)
def test_template_that_cannot_render_a_question_and_an_answer_is_refused(byte_tokenizer, template, message):
    with pytest.raises(BaseModelError, match=message):
        ChatRenderer(byte_tokenizer, template)


# turns without loss --------------------------------------------------------------------------------------------------

EXCLUDED = {"role": "assistant", "content": "a pear", "weight": "0"}


def learnt_texts(renderer, messages):
    """Return the text of each example and the parts of it that carry loss."""
    examples = renderer.encode(messages)
    return [
        (
            renderer.tokenizer.decode(example.input_ids),
            renderer.tokenizer.decode([i for i, m in zip(example.input_ids, example.loss_mask, strict=True) if m]),
        )
        for example in examples
    ]


def test_an_excluded_turn_is_context(byte_tokenizer, chat_template):
    turns = [{"role": "user", "content": "Name a fruit."}, EXCLUDED, {"role": "user", "content": "Yes?"}]
    turns.append({"role": "assistant", "content": "no"})
    (plain,) = learnt_texts(ChatRenderer(byte_tokenizer), turns)
    assert plain == ("Name a fruit.\na pear<|endoftext|>Yes?\nno<|endoftext|>", "no<|endoftext|>")
    (chatml,) = learnt_texts(ChatRenderer(byte_tokenizer, chat_template("qwen2_5")), turns)
    assert "a pear<|im_end|>" in chatml[0]
    assert chatml[1] == "no<|im_end|>"


def test_answers_that_follow_each_other_are_one_example_each(byte_tokenizer):
    turns = [{"role": "user", "content": "Why?"}, *({"role": "assistant", "content": text} for text in ("yes", "no"))]
    renderer = ChatRenderer(byte_tokenizer)
    assert learnt_texts(renderer, turns) == [
        ("Why?\nyes<|endoftext|>", "yes<|endoftext|>"),
        ("Why?\nyes<|endoftext|>no<|endoftext|>", "no<|endoftext|>"),
    ]
    assert renderer.encode(turns)[-1].last_turn()[0] == len(renderer.encode(turns[:2])[0].input_ids)
