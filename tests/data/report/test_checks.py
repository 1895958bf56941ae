from dataclasses import replace

import numpy as np
import pytest

from mlflow_finetune_plugin.data.conversations.layouts import Layout
from mlflow_finetune_plugin.data.report.checks import RowSet, encoding_findings, label_findings, row_findings
from mlflow_finetune_plugin.data.report.tally import Labels, RowTally
from mlflow_finetune_plugin.data.tokens.batch_encoder import BatchEncoder, to_frame
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.data.tokens.row_index import RowIndex


@pytest.fixture
def encode(byte_tokenizer):
    encoder = BatchEncoder(ChatRenderer(byte_tokenizer), 0)
    return lambda conversations: encoder(to_frame(list(range(1, len(conversations) + 1)), conversations))


@pytest.fixture
def rows(tmp_path, encode):
    def make(name, *answered):
        index = RowIndex(tmp_path / name)
        turns = [({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in answered]
        if turns:
            every = np.arange(len(turns))
            index.add(encode(turns), every, file=0, examples=every)
        return RowSet.of(index, lambda file, line: f"{name}:{line}", lambda example: f"{name} example {example}")

    return make


def by_check(findings):
    return {finding.check: (finding.count, finding.places) for finding in findings}


def test_every_check_by_hand_with_its_places(rows):
    train = rows(
        *("a", ("Why?", "yes"), ("Why?", "yes"), ("why? ", "no"), ("Who?", "a fox"), ("WHO?", "A  fox"), ("How?", "so"))
    )
    held_out = rows("b", ("who?", "a fox"), ("Why?", "yes"), ("Where?", "here"), ("Where?", "here"), ("how?", "thus"))
    findings = row_findings(train, held_out)
    assert by_check(findings) == {
        "duplicates": (1, ("a:2",)),
        "near duplicates": (1, ("a:5",)),
        "contradictions": (1, ("a:1", "a:2", "a:3")),
        "duplicates in eval": (1, ("b:4",)),
        "eval rows in train": (1, ("b:2",)),
        "eval rows in train except for case and blanks": (1, ("b:1",)),
        "eval prompts in train": (3, ("b:1", "b:2", "b:5")),
    }
    examples = {finding.check: finding.example for finding in findings}
    assert examples["near duplicates"] == "a example 4"
    assert examples["contradictions"] == "a example 0 | a example 2"


def test_a_line_of_two_rated_answers_is_named_once(rows):
    """A pair is read as a good and a bad answer, which have the same line."""
    held_out = rows("b", ("Why?", "yes"), ("Why?", "no"))
    held_out = replace(held_out, position_text=lambda file, line: f"b:{(line + 1) // 2}")
    findings = by_check(row_findings(rows("a", ("Why?", "maybe")), held_out, "rated"))
    assert findings["eval prompts in train"][1] == ("b:1",)


def test_constant_answers_are_a_finding(rows):
    same = [(f"Is {i} so?", "yes") for i in range(10)]
    (finding,) = row_findings(rows("a", *same), rows("b"))
    assert (finding.check, finding.count, finding.places[0], finding.is_warning) == (
        "constant answers",
        10,
        "a:1",
        True,
    )
    assert row_findings(rows("c", *same[:9]), rows("d")) == []
    assert row_findings(rows("e", *same, ("Is it?", "no")), rows("f")) == []


def test_labels_that_differ_only_by_form_are_a_finding():
    labels = Labels()
    for label in ("Spam", "spam", "spam", "caf\u00e9", "cafe\u0301", "ham"):
        labels.note("train", label, "a:1")
    (finding,) = label_findings(labels)
    assert (finding.check, finding.count, finding.example) == ("similar labels", 2, "'Spam' 1 times, 'spam' 2 times")


def test_clean_rows_give_no_finding(rows):
    assert row_findings(rows("a", ("p", "a"), ("q", "b")), rows("b", ("r", "c"))) == []
    assert row_findings(rows("c"), rows("d", ("r", "c"))) == []


def test_documents_are_compared_whole(tmp_path, encode):
    index, other = RowIndex(tmp_path / "x"), RowIndex(tmp_path / "y")
    documents = [({"role": "assistant", "content": text},) for text in ("One day.", "Two days.", "one  day.")]
    index.add(encode(documents), np.arange(3), file=0, examples=np.arange(3))
    sets = [RowSet.of(document, lambda file, line: str(line), str) for document in (index, other)]
    assert by_check(row_findings(*sets)) == {"near duplicates": (1, ("3",))}


def test_rare_and_unseen_labels():
    labels = Labels()
    for _ in range(20):
        labels.note("train", "often", "a:1")
    labels.note("train", "rare", "a:2")
    labels.note("eval", "never", "b:7")
    unseen, imbalance = label_findings(labels)
    assert (unseen.count, unseen.places, unseen.example, unseen.is_warning) == (1, ("b:7",), "never", True)
    assert (imbalance.count, imbalance.is_warning) == (20, False)
    assert "'often' (20) as 'rare' (1)" in str(imbalance)


def test_an_evaluation_has_no_unseen_labels():
    labels = Labels()
    labels.note("eval", "spam", "b:7")
    assert label_findings(labels) == []
    labels.note("train", "spam", "a:1")
    assert label_findings(labels) == []


def test_encoding_faults_are_counted_per_row_with_lines(encode):
    tally = RowTally("a.csv", "t", 1.0, "train", Layout("text", {"text": "text"}))
    texts = [
        "fine caf\u00e9",
        "caf\u00c3\u00a9 and \u00e2\u20ac\u2122s",
        "lost \ufffd",
        "bell \x07 and \ufffd",
        "tab\tand\nline",
    ]
    batch = encode([({"role": "user", "content": text}, {"role": "assistant", "content": text}) for text in texts])
    for row, fault, excerpt in batch.odd:
        tally.note_odd(row + 1, fault, excerpt)
        tally.note_odd(row + 1, fault, excerpt)  # a second conversation of the same line
    assert by_check(encoding_findings([tally])) == {
        "mojibake": (1, ("a.csv line 2",)),
        "replacement character": (2, ("a.csv line 3", "a.csv line 4")),
        "control characters": (1, ("a.csv line 4",)),
    }


@pytest.mark.parametrize(
    "text",
    [
        "MANH\u00c3 BOA",
        "S\u00c3O PAULO",
        "\u00c2 la carte",
        "\u00e2ge",
        "\u4e2d\u6587",
        "na\u00efve \u2014 \u00abquoi\u00bb",
    ],
)
def test_text_in_other_languages_is_no_mojibake(text):
    from mlflow_finetune_plugin.data.tokens.encoding_faults import encoding_faults

    assert list(encoding_faults(text)) == []
