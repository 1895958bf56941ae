"""The text of an answer by one rule: blanks at its ends and the template's prefix are not part of it, inner blanks are."""

import pytest
from tiny_bases import tiny_tokenizer

from mlflow_finetune_plugin.evaluation.answer_text import answer_text, decoded_answer

THINK = "<think>\n\n</think>"


@pytest.mark.parametrize(
    ("written", "prefix", "text"),
    [
        (" HUM", "", "HUM"),
        ("\n HUM \n", "", "HUM"),
        (f"{THINK}\n\nham", THINK, "ham"),
        (f"\n{THINK}ham\n", f"{THINK}\n\n", "ham"),
        (f"ham {THINK}", THINK, f"ham {THINK}"),
        (f"{THINK}{THINK}", THINK, THINK),
        ("a  b\n", "", "a  b"),
        (THINK, THINK, ""),
        ("na \ufffd", "", "na"),
        ("\ufffdna\ufffd ", "", "\ufffdna"),
        ("", THINK, ""),
    ],
)
def test_blanks_and_the_prefix_are_no_part_of_an_answer(written, prefix, text):
    assert answer_text(written, prefix) == text


def test_blanks_before_punctuation_stay_as_in_engines():
    tokenizer = tiny_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    ids = tokenizer("yes , it is .", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "yes, it is.", "the tokenizer would remove them"
    assert decoded_answer(tokenizer, [*ids, tokenizer.eos_token_id], "") == "yes , it is ."
