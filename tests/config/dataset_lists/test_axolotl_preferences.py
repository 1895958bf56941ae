"""Axolotl's types of preference data."""

import pytest
import yaml
from data_requests import jsonl
from dataset_lists import axolotl, listed

from mlflow_finetune_plugin.config.dataset_lists import listed_files
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.errors import ConfigError

TURNS = [{"role": "user", "content": "Sky?"}]
WHOLE = {
    side: [*TURNS, {"role": "assistant", "content": text}] for side, text in (("chosen", "Blue."), ("rejected", "Red."))
}
TEXTS = {"chosen": "Blue.", "rejected": "Red."}
RATED = {"completion": "Blue.", "label": True}


@pytest.mark.parametrize(
    ("rl", "entry", "row"),
    [
        ("dpo", "chatml.argilla", {"instruction": "Sky?", "chosen_response": "Blue.", "rejected_response": "Red."}),
        ("dpo", "llama3.argilla", {"question": "Sky?", **TEXTS}),
        ("dpo", "chatml.argilla_chat", WHOLE),
        ("ipo", "llama3.icr", {"system": "", "input": "Sky?", **TEXTS}),
        (None, "chatml.intel", {"question": "Sky?", **TEXTS}),
        ("simpo", "chatml.prompt_pairs", {"prompt": "Sky?", **TEXTS}),
        ("dpo", "llama3.ultra", {"prompt": "Sky?", **WHOLE}),
        ("dpo", "chat_template.argilla_chat", WHOLE),
        ("orpo", "chat_template.argilla", {"prompt": "Sky?", **WHOLE}),
        ("orpo", "chat_template.argilla", WHOLE),
        (
            "dpo",
            {"type": "chat_template.default", "field_messages": "asked", "field_chosen": "good", "field_rejected": "bad"},
            {"asked": TURNS, "good": WHOLE["chosen"][-1], "bad": WHOLE["rejected"][-1]},
        ),
        (
            "dpo",
            {
                "type": "chat_template.default",
                "message_property_mappings": {"role": "from", "content": "value"},
                "roles": {"user": ["user"], "assistant": ["assistant"]},
            },
            {
                "messages": [{"from": "user", "value": "Sky?"}],
                **{side: {"from": "assistant", "value": text} for side, text in TEXTS.items()},
            },
        ),
        (
            "dpo",
            {"type": {"field_prompt": "q", "field_system": "system", "prompt_format": "{prompt}", "chosen_format": "{chosen}"}},
            {"q": "Sky?", **TEXTS},
        ),
        ("dpo", {"type": "user_defined.default", "field_prompt": "q", "field_chosen": "good"}, {"q": "Sky?", "good": "Blue.", "rejected": "Red."}),
        (None, "bradley_terry.chat_template", {"system": None, "input": "Sky?", **TEXTS}),
        ("kto", "chatml.argilla", {"instruction": "Sky?", **RATED}),
        ("kto", "llama3.argilla_chat", {"completion": WHOLE["chosen"], "label": True}),
        ("kto", "chatml.intel", {"question": "Sky?", **RATED}),
        ("kto", "llama3.ultra", {"prompt": "Sky?", **RATED}),
        ("kto", {"type": {"field_prompt": "q", "field_label": "ok", "completion_format": "{completion}"}}, {"q": "Sky?", "completion": "Blue.", "ok": True}),
    ],
)  # fmt: skip
def test_preferences_of_axolotl_are_read_as_the_same_pairs_and_ratings(tmp_path, rl, entry, row):
    jsonl(tmp_path / "a.jsonl", [row])
    entry = {"path": "a.jsonl", **(entry if isinstance(entry, dict) else {"type": entry})}
    path = axolotl(tmp_path, entry)
    path.write_text(yaml.safe_dump({"rl": rl, "datasets": [entry]}))
    (file,) = listed_files(DataFileSettings(path=str(path)))
    form = "rated" if rl == "kto" else "pairs"
    reading = interpret([row], ColumnSettings(layout=file.layout, columns=file.columns or {}, form=form))
    (conversation,) = reading.conversations(row)
    good = [*TURNS, WHOLE["chosen"][-1]]
    assert [{key: turn[key] for key in ("role", "content")} for turn in conversation.messages] == good
    if form == "pairs":
        assert conversation.rejected[-1]["content"] == "Red."
    else:
        assert conversation.is_good is True


def test_preferences_for_another_objective_of_axolotl_are_refused(tmp_path):
    path = tmp_path / "axolotl.yml"
    path.write_text(yaml.safe_dump({"rl": "grpo", "datasets": [{"path": "org/set", "type": "chatml.intel"}]}))
    with pytest.raises(ConfigError, match=r"chatml\.intel': has no rows for rl = 'grpo'; fix: rl: dpo"):
        listed(path)
