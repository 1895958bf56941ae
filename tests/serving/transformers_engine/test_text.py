from __future__ import annotations

from typing import Any

import pytest
from engine_process import EMBEDDED
from transformers import AutoTokenizer

from mlflow_finetune_plugin.serving.transformers_engine.text import Detokenizer, StopTexts

TEXT = "Zoë said: 日本語 🎉👩‍🚀 — naïve café! A dog   ran. ελληνικά"


@pytest.fixture(scope="module", params=["embedded", "stories260k-hd64"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    if request.param == "embedded":
        return AutoTokenizer.from_pretrained(EMBEDDED)
    return AutoTokenizer.from_pretrained(request.getfixturevalue("shared_data") / "models" / request.param)


def pieces(tokenizer: Any, prompt: list[int], answer: list[int], *, skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return [*(detokenizer.feed(token) for token in answer), detokenizer.finish()]


def test_pieces_join_to_the_text_without_half_characters(tokenizer: Any) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    for cut in (1, 7, len(ids) // 2):
        prompt, answer = ids[:cut], ids[cut:]
        while "\ufffd" in tokenizer.decode(prompt):  # the prompt ends with whole characters
            prompt, answer = ids[: len(prompt) + 1], ids[len(prompt) + 1 :]
        told = pieces(tokenizer, prompt, answer)
        assert "\ufffd" not in "".join(told)
        assert tokenizer.decode(prompt) + "".join(told) == tokenizer.decode(ids)


def test_text_is_told_as_soon_as_a_character_is_whole(tokenizer: Any) -> None:
    ids = tokenizer("once é upon", add_special_tokens=False)["input_ids"]
    told = pieces(tokenizer, ids[:1], ids[1:])
    assert sum(bool(piece) for piece in told) >= len(ids) - 3  # é takes at most two tokens


def test_half_a_character_at_the_end_is_told_as_such() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    ids = tokenizer("hi 🎉", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, ids[:1], ids[1:-1])) == " \ufffd"


def test_bytes_that_make_no_character_do_not_hold_text_back_for_ever() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    lead = tokenizer("🎉", add_special_tokens=False)["input_ids"][0]
    told = pieces(tokenizer, [40], [lead] * 100)
    assert "".join(told[:-1]).count("\ufffd") > 80


def test_special_tokens_are_told_only_when_asked_for() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    ids = tokenizer("a<|im_end|> b", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tokenizer, [40], ids)) == "a b"
    assert "".join(pieces(tokenizer, [40], ids, skip=False)) == "a<|im_end|> b"


@pytest.mark.parametrize(
    ("stops", "fed", "told", "found"),
    [
        (["END"], ["a", "b E", "ND", "c"], ["a", "b ", ""], "END"),
        (["END"], ["E", "N", "x"], ["", "", "ENx"], None),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], "aab"),
        (["xyz", "yz"], ["wxyz"], ["w"], "xyz"),
        (["\n\n", "stop"], ["one\n", "two st", "op it"], ["one", "\ntwo ", ""], "stop"),
        ([], ["a", "b"], ["a", "b"], None),
    ],
)
def test_stop_texts_never_leak(stops: list[str], fed: list[str], told: list[str], found: str | None) -> None:
    texts = StopTexts(stops)
    for piece, expected in zip(fed, told, strict=False):
        assert texts.feed(piece) == expected
    assert texts.match == found


def test_held_text_is_told_at_the_end() -> None:
    texts = StopTexts(["END"])
    assert texts.feed("the EN") == "the "
    assert texts.finish() == "EN"
    assert texts.match is None
