"""A tokenizer is loaded and used in a process with limits, and one that takes too much never reaches an engine."""

import json

import pytest
from tiny_bases import tiny_tokenizer
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.errors import ServingError
from mlflow_finetune_plugin.serving.versions.trials import tokenizer as tokenizer_trial
from mlflow_finetune_plugin.serving.versions.trials.tokenizer import try_tokenizer

pytestmark = pytest.mark.process

LLAMA_3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def tried(folder, tokenizer):
    (folder / "version").mkdir()
    (folder / "base").mkdir()
    tokenizer.save(str(folder / "version" / "tokenizer.json"))
    try_tokenizer(folder / "version", folder / "base", "bot/1")


def tiny(**parts):
    tokenizer = tiny_tokenizer().backend_tokenizer
    for part, value in parts.items():
        setattr(tokenizer, part, value)
    return tokenizer


def split_by(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


@pytest.mark.parametrize("pattern", [LLAMA_3, r"\p{N}"])
def test_usual_expressions_pass(tmp_path, pattern):
    tried(tmp_path, tiny(pre_tokenizer=split_by(pattern)))


def test_usual_models_pass(tmp_path, shared_data):
    tried(tmp_path, Tokenizer.from_file(str(shared_data / "models" / "stories260k-hd64" / "tokenizer.json")))
    try_tokenizer(EMBEDDED_FOLDER, tmp_path, "bot/1")
    unigram = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("a", -1.0), (" ", -1.5), ("aa", -2.0)], 0, byte_fallback=False)
    )
    unigram.normalizer = normalizers.NFKC()
    (tmp_path / "unigram").mkdir()
    tried(tmp_path / "unigram", unigram)


@pytest.mark.bad_input
@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(q+q+)+z", r"(?:(?:\s|\s\s)+)+!", r"(?=.*.*.*.*!!!\z)"])
@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer"])
def test_an_expression_that_takes_too_long_is_refused(tmp_path, part, pattern):
    value = split_by(pattern) if part == "pre_tokenizer" else normalizers.Replace(Regex(pattern), "b")
    with pytest.raises(ServingError, match=r"^bot/1: tokenizer\.json cannot be used within 10 s and .*fix:"):
        tried(tmp_path, tiny(**{part: value}))


@pytest.mark.bad_input
def test_an_expression_that_is_slow_at_every_character_is_stopped(tmp_path):
    """Each search ends within the limit of the library, and there are many of them."""
    with pytest.raises(
        ServingError, match=r"tokenizer\.json cannot be used within 10 s .*: the process ended with -\d+"
    ):
        tried(tmp_path, tiny(pre_tokenizer=split_by(r"(?=(0|00)+\z)")))


@pytest.mark.bad_input
def test_text_that_grows_without_measure_is_refused(tmp_path):
    with pytest.raises(ServingError, match=r"characters become .* tokens; fix:"):
        tried(tmp_path, tiny(normalizer=normalizers.Replace("a", "b" * 1000)))


@pytest.mark.bad_input
def test_padding_to_any_length_is_refused(tmp_path):
    tokenizer = tiny()
    tokenizer.enable_padding(length=2**40)
    with pytest.raises(ServingError, match=r"tokenizer\.json cannot be used within .*fix:"):
        tried(tmp_path, tokenizer)


@pytest.mark.bad_input
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, json.dumps({"model": {"type": "BPE"}})])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ServingError, match=r"tokenizer\.json cannot be used within .*fix:"):
        try_tokenizer(tmp_path, tmp_path / "base", "bot/1")


@pytest.mark.bad_input
def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_trial, "run_limited", None)
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(ServingError, match=r"has 67,108,865 bytes, 67,108,864 are allowed; fix:"):
        try_tokenizer(tmp_path, tmp_path / "base", "bot/1")


def test_the_tokenizer_of_the_base_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_trial, "run_limited", None)
    try_tokenizer(EMBEDDED_FOLDER, EMBEDDED_FOLDER, "bot/1")
    used = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    used.no_padding()
    used.enable_truncation(77)
    used.save(str(tmp_path / "tokenizer.json"))
    try_tokenizer(tmp_path, EMBEDDED_FOLDER, "bot/1")


@pytest.mark.bad_input
@pytest.mark.parametrize("padding", [{"length": 2**40}, {"pad_to_multiple_of": 2**40}])
def test_the_tokenizer_of_the_base_with_other_padding_is_tried(tmp_path, padding):
    tokenizer = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    tokenizer.enable_padding(**padding)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ServingError, match=r"tokenizer\.json cannot be used within .*fix:"):
        try_tokenizer(tmp_path, EMBEDDED_FOLDER, "bot/1")
