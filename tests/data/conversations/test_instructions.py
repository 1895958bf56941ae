"""A file's instruction separates tasks that ask different questions about the same text."""

import json

import pytest

from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import DataError

PLURAL = {"hen": "hens", "cow": "cows"}
OPPOSITE = {"hen": "cock", "cow": "bull"}


def file(folder, name, rows, instruction=None):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"input": word, "output": answer}) + "\n" for word, answer in rows.items()))
    return DataFile(path, name, 1.0, instruction)


@pytest.fixture
def prepared(tmp_path, byte_tokenizer):
    def of(train, held_out):
        request = DataRequest(train, held_out, "auto", {}, "error", 512, None, 0)
        return prepare(request, ChatRenderer(byte_tokenizer), tmp_path / "out")

    return of


def test_instruction_stands_before_the_first_user_turn_on_both_sides(tmp_path, prepared, byte_tokenizer):
    train = (file(tmp_path, "plural", PLURAL, "Write the plural."), file(tmp_path, "opposite", OPPOSITE))
    data = prepared(train, (file(tmp_path, "asked", {"pig": "pigs"}, "Write the plural."),))
    texts = [byte_tokenizer.decode(ids) for ids in data.train["input_ids"]]
    assert texts[0] == "Write the plural.\n\nhen\nhens<|endoftext|>"
    assert texts[2] == "hen\ncock<|endoftext|>"
    assert data.eval_rows[0].messages == ({"role": "user", "content": "Write the plural.\n\npig"},)
    assert data.report.contradictions == 0


def test_same_prompt_in_several_files_is_reported_with_that_fix(tmp_path, prepared):
    train = (file(tmp_path, "plural", PLURAL), file(tmp_path, "opposite", OPPOSITE))
    (finding,) = [
        f for f in prepared(train, (file(tmp_path, "asked", {"pig": "pigs"}),)).report.findings if f.is_warning
    ]
    assert (finding.check, finding.count) == ("contradictions", 2)
    assert "2 of them in different files" in finding.text
    assert "set an instruction for each file" in finding.fix


def test_plain_text_takes_none(tmp_path, prepared):
    path = tmp_path / "text.txt"
    path.write_text("One.\n\nTwo.\n\nThree.")
    with pytest.raises(
        DataError, match=r"text.txt: an instruction needs conversations, and this file holds plain text; fix: "
    ):
        prepared((DataFile(path, "t", 1.0, "Go on."),), 0.4)
