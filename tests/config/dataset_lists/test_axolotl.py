"""Axolotl's configuration as a source."""

import pytest
from data_requests import jsonl
from dataset_lists import axolotl, listed

from mlflow_finetune_plugin.errors import ConfigError


def test_the_data_sets_of_an_axolotl_configuration(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "c.jsonl"):
        jsonl(tmp_path / name, [])
    path = axolotl(
        tmp_path,
        {"path": "a.jsonl", "type": "alpaca", "ds_type": "json"},
        {
            "path": "json",
            "data_files": ["b.jsonl", "c.jsonl"],
            "type": "chat_template",
            "field_messages": "turns",
            "roles_to_train": ["assistant"],
        },
        {"path": "org/set", "name": "main", "split": "test", "type": "sharegpt"},
        {"path": "a.jsonl", "type": "completion", "field": "body"},
        {"path": "a.jsonl", "type": {"field_instruction": "q", "field_output": "a", "format": None}},
    )
    assert listed(path) == [
        (str(tmp_path / "a.jsonl"), "alpaca", None, None),
        (str(tmp_path / "b.jsonl"), "messages", {"messages": "turns"}, None),
        (str(tmp_path / "c.jsonl"), "messages", {"messages": "turns"}, None),
        ("hf:org/set:main:test", "sharegpt", {"conversations": "conversations"}, None),
        (str(tmp_path / "a.jsonl"), "text", {"text": "body"}, None),
        (str(tmp_path / "a.jsonl"), "alpaca", {"instruction": "q", "output": "a"}, None),
    ]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"path": "org/set", "type": "orpo.chat_template"}, "type = 'orpo.chat_template': has no equal here"),
        (
            {"path": "org/set", "type": "zephyr.nectar"},
            "it ranks several answers; fix: write each two answers as a row with chosen and rejected",
        ),
        ({"path": "org/set", "type": "passthrough.default"}, "its rows are formatted prompts"),
        (
            {"path": "org/set", "type": {"field_chosen": "c", "prompt_format": "[INST] {prompt}"}},
            r"type\.prompt_format = '\[INST\] {prompt}': has no equal here.*fix: remove it",
        ),
        (
            {"path": "org/set", "type": {"field_chosen": "c", "field_label": "l"}},
            "type: field_label: has no equal here",
        ),
        (
            {"path": "org/set", "type": "chat_template.default", "message_property_mappings": {"role": "speaker"}},
            "message_property_mappings = .*speaker.*fix: name the fields role and content",
        ),
        (
            {"path": "org/set", "type": "chat_template.default", "roles": {"assistant": ["bot"]}},
            "roles: has no equal here",
        ),
        (
            {"path": "org/set", "type": {"field_instruction": "q", "format": "[INST] {instruction}"}},
            r"type\.format: has no equal here; fix: remove it, .* with data\.prompt_template",
        ),
        (
            {"path": "org/set", "type": "pygmalion"},
            r"fix: use alpaca, completion, chat_template, sharegpt, a type of preferences such as chatml\.intel, or an object",
        ),
        ({"path": "org/set", "type": "chat_template", "roles_to_train": ["user"]}, "roles_to_train: has no equal here"),
        ({"path": "lost.jsonl", "type": "alpaca"}, r"the file lost\.jsonl does not exist"),
        ({"type": "alpaca"}, "has no path"),
    ],
)
def test_what_axolotl_does_and_this_package_does_not(tmp_path, entry, words):
    with pytest.raises(ConfigError, match=words):
        listed(axolotl(tmp_path, entry))
