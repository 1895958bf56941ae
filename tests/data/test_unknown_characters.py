"""Answers with characters that the base's tokenizer does not know are named, and what is only in a prompt is not."""

import copy

import pytest
from data_requests import jsonl, request
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mlflow_finetune_plugin.data import DataFile, prepare
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single ASCII characters; it has no token for others."""
    named = ["<unk>", "<|endoftext|>", "<pad>", *(chr(code) for code in range(9, 127))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(named)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|endoftext|>", pad_token="<pad>"
    )


def warnings_of(tmp_path, tokenizer, rows, **options):
    held_out = [row | {"prompt": f"{row['prompt']} again"} for row in rows[:1]]
    files = (DataFile(jsonl(tmp_path / "eval.jsonl", held_out), "t"),)
    train = request(jsonl(tmp_path / "train.jsonl", rows), files, **options)
    report = prepare(train, ChatRenderer(tokenizer), tmp_path / "out").report
    return [finding for finding in report.findings if finding.check == "unknown characters"]


PAIR = {"prompt": "Weather?", "chosen": "Fine.", "rejected": "Bad."}


def test_better_answers_that_the_base_cannot_write_are_named(tmp_path, letters):
    rows = [PAIR, PAIR | {"prompt": "Now?", "chosen": "Snow: ☃☃ and ❄."}, PAIR | {"prompt": "When?", "chosen": "☃"}]
    (finding,) = warnings_of(tmp_path, letters, rows, form="pairs")
    assert (finding.count, finding.places, finding.example) == (2, ("train.jsonl line 2", "train.jsonl line 3"), "'☃❄'")
    assert finding.is_warning
    assert "does not know, so the base cannot write it" in str(finding)


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        PAIR | {"rejected": "☃ in the worse answer"},
        PAIR | {"prompt": "☃ in the prompt?"},
    ],
)
def test_pairs_whose_better_answers_can_be_written_are_silent(tmp_path, letters, row):
    assert warnings_of(tmp_path, letters, [PAIR | {"prompt": "Now?"}, row], form="pairs") == []


def test_answers_to_imitate_are_checked_too(tmp_path, letters):
    (finding,) = warnings_of(
        tmp_path, letters, [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "ü"}]
    )
    assert (finding.count, finding.places, finding.example) == (1, ("train.jsonl line 2",), "'ü'")


def test_tokenizers_that_know_every_character_are_silent(tmp_path, gpt2_tokenizer, llama2_tokenizer):
    gpt2 = copy.deepcopy(gpt2_tokenizer)
    gpt2.unk_token = "<|endoftext|>"  # as GPT-2's own tokenizer names it
    for number, tokenizer in enumerate((gpt2, llama2_tokenizer)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert (
            warnings_of(folder, tokenizer, [{"prompt": "a", "completion": "☃"}, {"prompt": "b", "completion": "x"}])
            == []
        )


def test_a_tokenizer_that_drops_characters_is_found_out(tmp_path, letters):
    """Some tokenizers have no unknown token: what they do not know vanishes, and the answer that is learned is another one."""
    dropping = copy.deepcopy(letters)
    dropping.backend_tokenizer.normalizer = normalizers.Replace("#", "")
    (finding,) = warnings_of(
        tmp_path,
        dropping,
        [{"prompt": "a", "completion": "b"}, {"prompt": "2 and 3?", "completion": "It is 5.\n#### 5"}],
    )
    assert (finding.places, finding.example) == (("train.jsonl line 2",), "'#'")


def test_references_that_no_completion_can_match_are_named(tmp_path, letters):
    rows = [{"prompt": "a", "reference": "b"}, {"prompt": "c", "reference": "☃"}, {"prompt": "d ☃", "note": "☃"}]
    (finding,) = warnings_of(tmp_path, letters, rows, form="prompts")
    assert (finding.places, finding.example) == (("train.jsonl line 2",), "'☃'")


def test_turns_that_are_not_learned_and_other_forms_of_known_characters_are_silent(tmp_path, letters):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "☃", "weight": 0},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c\u00a0d\u200d"},
    ]
    chats = [{"messages": turns}, {"messages": [*turns[2:3], {"role": "assistant", "content": "ok"}]}]
    train = jsonl(tmp_path / "chats.jsonl", chats)
    held_out = (DataFile(jsonl(tmp_path / "eval.jsonl", [{"messages": turns[2:]}]), "t"),)
    report = prepare(request(train, held_out), ChatRenderer(letters), tmp_path / "out").report
    assert not [finding for finding in report.findings if finding.check == "unknown characters"]


def test_gsm8ks_answers_are_beyond_a_tokenizer_of_tiny_stories(tmp_path, shared_data):
    tokenizer = AutoTokenizer.from_pretrained(shared_data / "models" / "tinystories-656k-hd64")
    rows = [{"question": f"{i} and 2?", "answer": f"They are {i + 2}.\n#### {i + 2}"} for i in range(3)]
    train, held_out = (jsonl(tmp_path / f"{name}.jsonl", rows) for name in ("train", "eval"))
    data = request(train, (DataFile(held_out, "t"),), form="prompts")
    report = prepare(data, ChatRenderer(tokenizer), tmp_path / "out").report
    (finding,) = [finding for finding in report.findings if finding.check == "unknown characters"]
    assert finding.example == "'#'"
