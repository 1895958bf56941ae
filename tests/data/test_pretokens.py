"""The cut at blanks, against the tokenizer itself: the ids of a text are those of its two parts."""

import random

import pytest

from mlflow_finetune_plugin.data.pretokens import cut_before, cuts_at_blanks
from mlflow_finetune_plugin.data.rendering import ChatRenderer

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


def test_shortcut_changes_no_example(gpt2_tokenizer):
    fast, slow = ChatRenderer(gpt2_tokenizer), ChatRenderer(gpt2_tokenizer)
    slow._cuts_at_blanks, slow._is_plain = False, False
    dice = random.Random(1)
    rows = []
    for _ in range(500):
        asked, answer = ("".join(dice.choice(PIECES[:-1]) for _ in range(dice.randint(1, 9))) + end for end in "x.")
        rows.append([{"role": "user", "content": asked}, {"role": "assistant", "content": answer}])
    assert fast.encode_batch(rows) == slow.encode_batch(rows)


def test_last_blank_behind_a_letter():
    assert cut_before("one two three", 13) == 7
    assert cut_before("one two three", 7) == 3
    assert cut_before("one 2 . \u00e9 x", 13) == 3
    assert cut_before("nothing", 7) == 0
