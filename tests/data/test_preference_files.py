"""Files of preferences in the formats of the hub and of spreadsheets give the same conversations."""

import csv
import json

import pytest
from shown_turns import shown

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.sources.rows import peek, read_rows

ASK, GOOD, BAD = (
    {"role": role, "content": text}
    for role, text in (("user", "Sky?"), ("assistant", "Blue."), ("assistant", "Green."))
)
SYSTEM = {"role": "system", "content": "Be kind."}
PAIRS = [
    {"prompt": "Sky?", "chosen": [ASK, GOOD], "rejected": [ASK, BAD], "score_chosen": 2.0, "margin": 0.5},
    {
        "prompt": "Sky?",
        "chosen": [SYSTEM, ASK, GOOD],
        "rejected": [SYSTEM, ASK, BAD],
        "score_chosen": None,
        "margin": None,
    },
]
RATINGS = [
    {"prompt": "Sky?", "completion": "Blue.", "label": True},
    {"prompt": "Sky?", "completion": "Green.", "label": False},
]
REWARDS = [{"prompt": [ASK], "reward_model": {"ground_truth": "Blue."}, "level": 1}, {"prompt": [ASK], "level": None}]


def written(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(
                {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()}
                for row in rows
            )
    return path


def conversations(path, form):
    reading = interpret([row for _, row in peek(path)], ColumnSettings(form=form))
    read = [conversation for _, row in read_rows(path) for conversation in reading.conversations(row)]
    reading.check()
    return read


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_pairs_of_every_format(tmp_path, name):
    first, second = conversations(written(tmp_path / name, PAIRS), "pairs")
    assert (shown(first.messages), shown(first.rejected), first.margin) == (
        ["user: Sky?", "assistant: Blue."],
        ["user: Sky?", "assistant: Green."],
        0.5,
    )
    assert (shown(second.messages), shown(second.rejected), second.margin) == (
        ["system: Be kind.", "user: Sky?", "assistant: Blue."],
        ["system: Be kind.", "user: Sky?", "assistant: Green."],
        None,
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv"])
def test_ratings_of_every_format(tmp_path, name):
    answers = conversations(written(tmp_path / name, RATINGS), "rated")
    assert [(shown(answer.messages), answer.is_good) for answer in answers] == [
        (["user: Sky?", "assistant: Blue."], True),
        (["user: Sky?", "assistant: Green."], False),
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_prompts_of_every_format(tmp_path, name):
    first, second = conversations(written(tmp_path / name, REWARDS), "prompts")
    assert shown(first.messages) == shown(second.messages) == ["user: Sky?"]
    assert json.loads(first.fields) == {"reward_model": {"ground_truth": "Blue."}, "level": 1}
    assert json.loads(second.fields).get("level") is None
