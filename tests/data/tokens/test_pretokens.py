"""The cut at blanks, against the tokenizer itself: the ids of a text are those of its two parts."""

import copy
import random

import pytest

from mlflow_finetune_plugin.data.tokens.pretokens import cut_before, cuts_at_blanks
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

PIECES = [
    "a",
    "the fox",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    ".",
    "42",
    "\u00e9",
    "e\u0301",
    "\u65e5\u672c",
    "\U0001f642",
    "'s",
    "...",
    "I'll ",
    "B ",
    "<bos>",
]


@pytest.mark.parametrize("name", ["byte_tokenizer", "gpt2_tokenizer"])
def test_parts_tokenise_as_within_the_whole(name, request):
    tokenizer = request.getfixturevalue(name)
    assert cuts_at_blanks(tokenizer)
    dice, cuts = random.Random(0), 0
    for _ in range(3000):
        text = "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 14)))
        at = cut_before(text, dice.randint(0, len(text)))
        if at:
            cuts += 1
            parts = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text[:at], text[at:])]
            assert parts[0] + parts[1] == tokenizer(text, add_special_tokens=False)["input_ids"], (text, at)
    assert cuts > 500


def test_only_known_tokenizers_are_cut(llama2_tokenizer):
    assert not cuts_at_blanks(llama2_tokenizer)


def test_added_token_with_a_blank_forbids_the_cut(byte_tokenizer):
    import copy

    odd = copy.deepcopy(byte_tokenizer)
    odd.add_tokens(["fox jumps"])
    assert not cuts_at_blanks(odd)


CHATML = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] + '\\n' + message['content'] }}<|im_end|>{{ '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant{{ '\\n' }}{%- endif -%}"
)


LEAVES_SOME_OPEN = CHATML.replace("<|im_end|>", "{{ '' if 'open' in message['content'] else '<|im_end|>' }}", 1)


@pytest.mark.parametrize("template", [None, CHATML, LEAVES_SOME_OPEN])
@pytest.mark.parametrize("turns", [1, 3])
def test_shortcut_changes_no_example(gpt2_tokenizer, turns, template):
    tokenizer = copy.deepcopy(gpt2_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast, slow = (ChatRenderer(tokenizer, template) for _ in range(2))
    slow._finder.cuts_at_blanks, slow._finder.is_plain = False, False
    dice = random.Random(1)
    pieces = [*PIECES[:-1], " <|im_end|>", "<|im_start|>user\n", "open "]
    rows = []
    for _ in range(500):
        messages = ["".join(dice.choice(pieces) for _ in range(dice.randint(1, 9))) + "." for _ in range(2 * turns)]
        rows.append([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)])
    by_cuts, by_offsets = ([str(example) for example in side.encode_batch(rows)] for side in (fast, slow))
    assert by_cuts == by_offsets
    assert sum("Example(" in example for example in by_cuts) > 50
    assert any("no end-of-turn token" in example for example in by_cuts) == (template == LEAVES_SOME_OPEN)


def test_last_blank_behind_a_letter():
    assert cut_before("one two three", 13) == 7
    assert cut_before("one two three", 7) == 3
    assert cut_before("one 2 . \u00e9 x", 13) == 3
    assert cut_before("nothing", 7) == 0
