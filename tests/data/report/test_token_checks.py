import json

import pytest
from transformers import AutoTokenizer

from mlflow_finetune_plugin.base_models.files import EMBEDDED_FOLDER
from mlflow_finetune_plugin.data import DataFile, DataRequest, prepare
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import DataError


@pytest.fixture
def findings(tmp_path):
    renderer = ChatRenderer(AutoTokenizer.from_pretrained(EMBEDDED_FOLDER), weights=EMBEDDED_FOLDER)

    def of(answers):
        path = tmp_path / "rows.jsonl"
        rows = [{"prompt": f"Say {i}.", "completion": answer} for i, answer in enumerate(answers)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        request = DataRequest((DataFile(path, "t", 1.0),), 0.2, "auto", {}, "error", 256, None, 0)
        return {finding.check: finding for finding in prepare(request, renderer, tmp_path / "out").report.findings}

    return of


def test_answers_in_characters_that_the_base_never_saw_are_a_warning(findings):
    result = findings([f'{{"city": "{city}"}}' for city in ("Oslo", "Rome", "Paris", "Lima", "Cairo") * 4])
    finding = result["untrained answer tokens"]
    assert finding.is_warning
    assert '"' in finding.example
    assert "{" in finding.example
    assert finding.count == 16 * 6  # four quotes and two braces in each of the 16 rows of train


def test_answers_that_the_base_knows_are_not(findings):
    assert "untrained answer tokens" not in findings(["the kettle is red", "a lamp in Oslo"] * 10)


def test_a_rare_one_is_a_note(findings):
    result = findings(["the kettle is red and the lamp is in Oslo"] * 400 + ["red #"] * 5)
    assert not result["untrained answer tokens"].is_warning


def test_a_token_without_a_row_in_the_embedding_table_is_refused(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    rows = [{"prompt": f"Say {i}.", "completion": "ok"} for i in range(10)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = DataRequest((DataFile(path, "t", 1.0),), 0.2, "auto", {}, "error", 256, None, 0)
    tokenizer.add_tokens(["<city>"])  # a larger tokenizer alone is no fault: some bases have ids that no text uses
    prepare(request, ChatRenderer(tokenizer, weights=EMBEDDED_FOLDER), tmp_path / "out")
    path.write_text("".join(json.dumps({**row, "completion": "<city>"}) + "\n" for row in rows))
    with pytest.raises(
        DataError, match=r"the data has the token '<city>' with id [\d,]+, and the table has [\d,]+ rows"
    ):
        prepare(request, ChatRenderer(tokenizer, weights=EMBEDDED_FOLDER), tmp_path / "out")
