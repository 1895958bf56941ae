"""A set of prompts: strict about its file, the layouts of training data welcome."""

import json

import pytest
from votes_cast import vote

from mlflow_finetune_plugin.errors import DataError
from mlflow_finetune_plugin.votes import prompt_sets
from mlflow_finetune_plugin.votes.prompt_sets import read_prompt_set

HI = {"role": "user", "content": "hi?"}


def write(tmp_path, *lines, name="greetings.jsonl"):
    path = tmp_path / name
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_every_layout_of_a_row(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "hi?"},
        {"prompt": "why?", "completion": "because", "id": "q-2"},
        {"messages": [{"role": "system", "content": "be short"}, HI], "reference": "hello", "id": 3},
        "\n",
        {"messages": [HI, {"role": "assistant", "content": "hello"}, HI, {"role": "assistant", "content": "again"}]},
    )
    found = read_prompt_set(path)
    assert (found.name, found.repeated) == ("greetings", 0)
    assert [(prompt.id, prompt.reference) for prompt in found.prompts] == [
        ("1", None),
        ("q-2", "because"),
        ("3", "hello"),
        ("5", "again"),
    ]
    assert found.prompts[0].messages == (HI,)
    assert found.prompts[3].messages == (HI, {"role": "assistant", "content": "hello"}, HI)


def test_a_prompt_has_the_digest_that_its_votes_have(tmp_path):
    (prompt,) = read_prompt_set(write(tmp_path, {"prompt": "hi?"})).prompts
    assert prompt.digest == vote(1, question="hi?").turn.prompt_digest


def test_a_prompt_twice_is_asked_once(tmp_path):
    path = write(tmp_path, {"prompt": "hi?", "reference": "a"}, {"prompt": "hi?", "reference": "b"}, {"messages": [HI]})
    found = read_prompt_set(path)
    assert ([prompt.reference for prompt in found.prompts], found.repeated) == (["a"], 2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{broken\n", "is not JSON"),
        ("[" * 100_000 + "\n", "is not JSON"),
        ("[1]\n", "is a list, not a JSON object"),
        ({}, "has neither prompt and messages"),
        ({"prompt": "hi?", "messages": [HI]}, "has both prompt and messages"),
        ({"prompt": "hi?", "refrence": "x"}, "'refrence' is not a field; fix: use only prompt, messages, reference"),
        ({"prompt": " "}, "prompt is not a text"),
        ({"prompt": [HI]}, "prompt is not a text"),
        ({"messages": []}, "messages must be a list of messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages must be a list of messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages must be a list of messages"),
        ({"messages": [{"role": "assistant", "content": "hello"}]}, "messages have no question of the user at the end"),
        ({"messages": [{"role": "system", "content": "be short"}]}, "messages have no question of the user at the end"),
        ({"prompt": "hi?", "reference": "a", "completion": "b"}, "has two references, reference and completion"),
        ({"messages": [HI, {"role": "assistant", "content": "a"}], "reference": "b"}, "has two references"),
        ({"prompt": "hi?", "reference": 3}, "reference is not a text"),
        ({"prompt": "hi?", "id": True}, "id is not a short text"),
        ({"prompt": "x" * 101}, "the prompt has 101 characters, the limit is 100"),
    ],
)
def test_what_is_no_prompt_is_told_with_its_line_and_the_fix(tmp_path, row, said):
    path = write(tmp_path, {"prompt": "fine"}, "\n", row)
    with pytest.raises(DataError) as raised:
        read_prompt_set(path, longest_prompt_chars=100)
    assert str(raised.value).startswith(f"{path}, line 3: {said}")
    assert "; fix: " in str(raised.value)


def test_what_is_no_file_of_prompts(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="No such file or directory; fix: give a JSONL file"):
        read_prompt_set(tmp_path / "missing.jsonl")
    with pytest.raises(DataError, match="has no prompts; fix: write one row per line"):
        read_prompt_set(write(tmp_path, "\n", "  \n"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "hi"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match="line 2: is not UTF-8; fix: save the file as UTF-8"):
        read_prompt_set(tmp_path / "latin.jsonl")
    many = write(tmp_path, *[{"prompt": f"{number}"} for number in range(10_001)])
    with pytest.raises(DataError, match="line 10001: more than 10,000 prompts; fix: split the file"):
        read_prompt_set(many)
    monkeypatch.setattr(prompt_sets, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(DataError, match="MiB, the limit is 0 MiB; fix: split the file"):
        read_prompt_set(many)


def test_several_faults_are_told_at_once(tmp_path):
    with pytest.raises(DataError, match=r"(?s)3 faulty lines.*line 2: .*line 3: .*line 4: "):
        read_prompt_set(write(tmp_path, {"prompt": "one"}, {"prompt": ""}, "not json\n", [1]))
