"""The findings on real data sets are those that a count in a few lines of Python gives, and no others."""

import gzip
import json
from collections import Counter, defaultdict

import pytest
from data_requests import request

from mlflow_finetune_plugin.data import prepare

REAL = {
    "chat_messages_demo/conversations.jsonl": set(),
    "instruction_induction/induce/sentiment.json": set(),
    "instruction_induction/induce/letters_list.json.gz": set(),
    "instruction_induction/execute/taxonomy_animal.json": set(),
    "instruction_induction/induce/larger_animal.json.gz": {"duplicates", "duplicates in eval"},
    "instruction_induction/induce/rhymes.json.gz": {"contradictions"},
    "banking77/test.csv": set(),  # the repeated row is held out
    "plain_text/c4_demo.jsonl.gz": {"replacement character"},
    "soda_chat_subset/derived_messages.jsonl": {"duplicates", "duplicates in eval", "contradictions"},
}


@pytest.mark.parametrize("name", REAL)
def test_real_rows_have_these_findings_and_no_others(tmp_path, dataset_folder, renderer, name):
    report = prepare(request(dataset_folder / name, max_length=100_000), renderer, tmp_path / "out").report
    assert {finding.check for finding in report.findings} == REAL[name]
    assert report.skipped == 0


def asked_and_answered(path):
    """Return (prompt, answer) of each row, without case and blanks."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    rows = json.loads(text)["examples"].values() if ".json." in f"{path.name}." else map(json.loads, text.splitlines())
    for row in rows:
        turns = row.get("messages") or [{"content": row["input"]}, {"content": row["output"]}]
        texts = [" ".join(turn["content"].lower().split()) for turn in turns]
        yield tuple(texts[:-1]), texts[-1]


@pytest.mark.parametrize(
    "name",
    [
        *("instruction_induction/induce/larger_animal.json.gz", "instruction_induction/induce/rhymes.json.gz"),
        "soda_chat_subset/derived_messages.jsonl",
    ],
)
def test_counts_on_real_rows_are_those_of_a_plain_count(tmp_path, dataset_folder, renderer, name):
    report = prepare(request(dataset_folder / name, max_length=100_000), renderer, tmp_path / "out").report
    rows = list(asked_and_answered(dataset_folder / name))
    near = sum(finding.count for finding in report.findings if finding.check == "near duplicates")
    assert report.duplicates + report.eval_duplicates + near == sum(n - 1 for n in Counter(rows).values())
    answers = defaultdict(set)
    for prompt, answer in rows:
        answers[prompt].add(answer)
    # The held-out rows of a prompt are all on one side, so a contradiction is in train or in eval; only train is reported.
    assert report.contradictions <= sum(len(several) > 1 for several in answers.values())
