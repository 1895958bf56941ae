import gzip

import pytest
import torch

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.evaluation.forgetting import DEFAULT_TEXT, _windows, read_texts, text_nats


def test_packaged_text_is_forty_paragraphs():
    texts = read_texts(DEFAULT_TEXT)
    assert len(texts) == len(set(texts)) == 40
    assert all(40 <= len(text.split()) <= 80 for text in texts)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("one\ntwo\n\n\nthree\n", ["one\ntwo", "three"]),
        ("one\ntwo\n", ["one", "two"]),
        ("one\r\n \r\ntwo", ["one", "two"]),
        ("\ufeffone", ["one"]),
    ],
)
def test_texts_are_paragraphs_or_else_lines(tmp_path, content, texts):
    plain, packed = tmp_path / "t.txt", tmp_path / "t.txt.gz"
    plain.write_bytes(content.encode())
    packed.write_bytes(gzip.compress(content.encode(), mtime=0))
    assert read_texts(plain) == read_texts(packed) == texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "cannot read"),
        ("broken.gz", b"no gzip", "cannot read"),
        ("short.gz", gzip.compress(b"one two three" * 99, mtime=0)[:30], "is cut off"),
        ("latin.txt", "café".encode("latin-1"), "fix: save it as UTF-8"),
        ("empty.txt", b" \n\n", "is empty"),
    ],
)
def test_unreadable_text_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{message}|{message}.*{name}"):
        read_texts(tmp_path / name)


@pytest.mark.parametrize("length", range(14))
def test_windows_score_every_token_once_with_enough_context(length):
    windows = list(_windows(list(range(1, length + 1)), 0, 6))
    assert [token for _, scored in windows for token in scored] == list(range(1, length + 1))
    for number, (context, scored) in enumerate(windows):
        assert len(context) + len(scored) <= 6
        assert context[-1] == scored[0] - 1
        assert len(context) >= (3 if number else 1)


def test_without_a_start_token_the_first_token_is_context_only():
    assert list(_windows([5, 6, 7], None, 6)) == [([5], [6, 7])]
    assert list(_windows([5], None, 6)) == []


@torch.no_grad()
def test_nats_equal_the_models_own_loss(stories):
    model, tokenizer = stories
    texts = ["Once upon a time there was a little girl.", "The dog ran."]
    nats = text_nats(model, tokenizer, texts, max_length=512)
    for text, (total, tokens) in zip(texts, nats, strict=True):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]])
        assert tokens == ids.shape[1] - 1
        assert total / tokens == pytest.approx(float(model(ids, labels=ids).loss), abs=1e-5)


@torch.no_grad()
def test_long_text_is_scored_in_windows_and_nothing_is_dropped(stories):
    model, tokenizer = stories
    text = " ".join(["Once upon a time there was a little girl."] * 40)
    [[nats, tokens]] = text_nats(model, tokenizer, [text], max_length=64)
    [[whole_nats, whole_tokens]] = text_nats(model, tokenizer, [text], max_length=512)
    assert tokens == whole_tokens == len(tokenizer.encode(text, add_special_tokens=False)) == 480
    assert nats == pytest.approx(whole_nats, rel=0.05)  # the context differs, the text does not
