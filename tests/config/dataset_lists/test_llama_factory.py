"""LLaMA-Factory's list of data sets as a source."""

import json

import pytest
from dataset_lists import listed, llama_factory
from shown_turns import read, shown

import mlflow_finetune_plugin as ft
from mlflow_finetune_plugin.config.data_files import data_files
from mlflow_finetune_plugin.config.dataset_lists import listed_files
from mlflow_finetune_plugin.config.sections import DataFileSettings
from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("entry", "layout", "columns"),
    [
        ({}, "alpaca", {}),
        ({"columns": {"prompt": "q", "response": "a", "system": None}}, "alpaca", {"instruction": "q", "output": "a"}),
        (
            {"columns": {"prompt": "q", "query": "i", "response": "a"}},
            "alpaca",
            {"instruction": "q", "input": "i", "output": "a"},
        ),
        ({"formatting": "sharegpt"}, "sharegpt", {"conversations": "conversations"}),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "turns", "system": "s", "tools": "tools"},
                "tags": {
                    "role_tag": "role",
                    "content_tag": "content",
                    "user_tag": "user",
                    "assistant_tag": "assistant",
                },
            },
            "messages",
            {"messages": "turns", "system": "s"},
        ),
        (
            {"ranking": True, "columns": {"prompt": "q", "query": "i", "chosen": "c", "rejected": "r"}},
            "preference",
            {"input": "i", "prompt": "q", "chosen": "c", "rejected": "r"},
        ),
        (
            {
                "ranking": True,
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
            },
            "preference",
            {"prompt": "conversations", "chosen": "chosen", "rejected": "rejected"},
        ),
        ({"ranking": True, "columns": {"response": "out"}}, "ranked", {"prompt": "instruction", "output": "out"}),
        (
            {"columns": {"prompt": "q", "response": "a", "kto_tag": "ok"}},
            "rated",
            {"prompt": "q", "completion": "a", "label": "ok"},
        ),
        (
            {
                "formatting": "sharegpt",
                "columns": {"messages": "messages", "kto_tag": "label"},
                "tags": {"role_tag": "role", "content_tag": "content"},
            },
            "rated",
            {"messages": "messages", "label": "label"},
        ),
    ],
)
def test_a_data_set_of_llama_factory(tmp_path, entry, layout, columns):
    path = llama_factory(tmp_path, {"file_name": "a.json", **entry})
    assert listed(path) == [(str(tmp_path / "a.json"), layout, columns, "mine")]


TAGS = {
    "role_tag": "wer",
    "content_tag": "was",
    "user_tag": "Mensch",
    "assistant_tag": "Maschine",
    "system_tag": "Regel",
    "observation_tag": "Antwort",
    "function_tag": "Aufruf",
}
TAGGED = [
    {"wer": "Regel", "was": "s"},
    {"wer": "Mensch", "was": "q"},
    {"wer": "Aufruf", "was": '{"name": "f", "arguments": {"n": 7}}'},
    {"wer": "Antwort", "was": "seven"},
    {"wer": "Maschine", "was": "a", "weight": 1},
]


@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
def test_turns_with_the_tags_of_a_data_set_of_llama_factory_are_read(tmp_path, formatting):
    entry = {"file_name": "a.json", "formatting": formatting, "columns": {"messages": "turns"}, "tags": TAGS}
    (file,) = data_files(listed_files(DataFileSettings(path=llama_factory(tmp_path, entry))))
    reading = interpret([{"turns": TAGGED}], file.settings(ColumnSettings()))
    (conversation,) = reading.conversations({"turns": TAGGED})
    assert [(turn["role"], turn["content"]) for turn in conversation.messages] == [
        *(("system", "s"), ("user", "q"), ("assistant", ""), ("tool", "seven"), ("assistant", "a")),
    ]
    assert conversation.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"n": 7}}
    with pytest.raises(RowFault, match="missing field: was"):
        reading.conversations({"turns": [{"wer": "Mensch", "text": "q"}]})
    with pytest.raises(RowFault, match="unsupported role: str 'Tier'"):
        reading.conversations({"turns": [{"wer": "Tier", "was": "q"}]})


@pytest.mark.parametrize(
    ("tags", "turns"),
    [
        ({"user_tag": "gpt", "assistant_tag": "human"}, [("gpt", "q"), ("human", "a")]),  # exchanged
        ({"assistant_tag": "Bob"}, [("human", "q"), ("Bob", "a")]),  # the others have ShareGPT's names
        ({"user_tag": "user", "assistant_tag": "assistant"}, [("user", "q"), ("assistant", "a")]),
    ],
)
def test_tags_of_roles_are_exact_names(tmp_path, tags, turns):
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    entry = {"file_name": "a.json", "formatting": "sharegpt", "tags": tags}
    (file,) = data_files(listed_files(DataFileSettings(path=llama_factory(tmp_path, entry))))
    (conversation,) = interpret([row], file.settings(ColumnSettings())).conversations(row)
    assert [(turn["role"], turn["content"]) for turn in conversation.messages] == [("user", "q"), ("assistant", "a")]


def test_a_run_trains_on_a_data_set_with_tags(tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps(
            [{"talk": [{"wer": "Mensch", "was": f"q{i}"}, {"wer": "Maschine", "was": f"a{i}"}]} for i in range(20)]
        )
    )
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": TAGS}
    checked = ft.check_data(llama_factory(tmp_path, entry))
    assert checked.is_usable, checked.problem
    assert (checked.report.files[0].layout, checked.report.skipped) == ("sharegpt: talk", 0)


def test_tags_need_turns_with_names(tmp_path):
    with pytest.raises(DataError, match="tags name the turns of ShareGPT, and the layout is prompt_completion"):
        interpret([{"prompt": "p", "completion": "c"}], ColumnSettings(tags={"role_tag": "r"}))
    with pytest.raises(ValueError, match="'rol_tag' is not a tag; fix: pick from: role_tag"):
        DataFileSettings(path="a.jsonl", tags={"rol_tag": "r"})


@pytest.mark.parametrize(
    ("entry", "row", "form"),
    [
        (
            {"ranking": True, "columns": {"prompt": "q", "chosen": "c", "rejected": "r"}},
            {"q": "Sky?", "c": "Blue.", "r": "Green."},
            "pairs",
        ),
        (
            {
                "ranking": True,
                "formatting": "sharegpt",
                "columns": {"messages": "talk", "chosen": "c", "rejected": "r"},
            },
            {
                "talk": [{"from": "human", "value": "Sky?"}],
                "c": {"from": "gpt", "value": "Blue."},
                "r": {"from": "gpt", "value": "Green."},
            },
            "pairs",
        ),
        ({"ranking": True}, {"instruction": "Sky?", "input": "", "output": ["Blue.", "Green."]}, "pairs"),
        ({"columns": {"kto_tag": "ok"}}, {"instruction": "Sky?", "input": "", "output": "Blue.", "ok": True}, "rated"),
        (
            {"formatting": "openai", "columns": {"kto_tag": "ok"}},
            {
                "messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}],
                "ok": True,
            },
            "rated",
        ),
    ],
)
def test_preferences_of_llama_factory_are_read(tmp_path, entry, row, form):
    (file,) = listed_files(DataFileSettings(path=llama_factory(tmp_path, {"file_name": "a.json", **entry})))
    answers = read(form, row, layout=file.layout, columns=file.columns)
    assert shown(answers[0].messages) == ["user: Sky?", "assistant: Blue."]
    assert [shown(answer.rejected) for answer in answers if answer.rejected] == (
        [["user: Sky?", "assistant: Green."]] if form == "pairs" else []
    )
    with pytest.raises(DataError, match="-e dpo, -e orpo or -e reward" if form == "pairs" else "-e kto"):
        read("answers", row, layout=file.layout, columns=file.columns)


@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
def test_tags_name_the_turns_of_preferences_too(tmp_path, formatting):
    question, better, worse = TAGGED[1], {"wer": "Maschine", "was": "Blue."}, {"wer": "Maschine", "was": "Green."}
    entry = {"file_name": "a.json", "formatting": formatting, "tags": TAGS}
    columns = {"messages": "talk", "chosen": "c", "rejected": "r"}
    path = llama_factory(tmp_path, {**entry, "ranking": True, "columns": columns})
    (file,) = data_files(listed_files(DataFileSettings(path=path)))
    row = {"talk": [question], "c": better, "r": worse}
    (pair,) = interpret([row], file.settings(ColumnSettings(form="pairs"))).conversations(row)
    assert (shown(pair.messages), shown(pair.rejected)) == (
        ["user: q", "assistant: Blue."],
        ["user: q", "assistant: Green."],
    )
    with pytest.raises(DataError, match="-e dpo, -e orpo or -e reward"):
        interpret([row], file.settings(ColumnSettings()))
    path = llama_factory(tmp_path, {**entry, "columns": {"messages": "talk", "kto_tag": "ok"}})
    (file,) = data_files(listed_files(DataFileSettings(path=path)))
    row = {"talk": [question, better], "ok": True}
    (answer,) = interpret([row], file.settings(ColumnSettings(form="rated"))).conversations(row)
    assert (shown(answer.messages), answer.is_good) == (["user: q", "assistant: Blue."], True)
    with pytest.raises(DataError, match="-e kto"):
        interpret([row], file.settings(ColumnSettings()))


def test_a_data_set_of_llama_factory_on_the_hub(tmp_path):
    path = llama_factory(tmp_path, {"hf_hub_url": "org/set", "subset": "main", "ms_hub_url": "other/set"})
    assert listed(path, task="t") == [("hf:org/set:main:train", "alpaca", {}, "t")]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        *(
            (
                {"file_name": "a.json", "formatting": layout, "columns": {medium: "c"}},
                rf"columns\.{medium} = 'c': this version trains on text only, and the turns refer to the {medium}",
            )
            for medium in ("images", "videos", "audios")
            for layout in ("alpaca", "sharegpt")
        ),
        ({"file_name": "a.json", "num_samples": 7}, "num_samples: has no equal here"),
        ({"script_url": "x"}, "script_url: has no equal here"),
        (
            {"file_name": "a.json", "formatting": "sharegpt", "tags": {"usr_tag": "u"}},
            "tags: 'usr_tag' is not a tag; fix: pick from: role_tag, content_tag, user_tag",
        ),
        (
            {"file_name": "a.json", "formatting": "sharegpt", "tags": {"user_tag": "u", "assistant_tag": "u"}},
            "tags: two tags have the name 'u'",
        ),
    ],
)
def test_what_llama_factory_does_and_this_package_does_not(tmp_path, entry, words):
    with pytest.raises(ConfigError, match=words):
        listed(llama_factory(tmp_path, entry))


def test_a_list_without_a_name_or_with_a_wrong_one_names_its_data_sets(tmp_path):
    path = llama_factory(tmp_path, {"file_name": "a.json"})
    for wrong in (path.partition("#")[0], path + "x"):
        with pytest.raises(
            ConfigError, match=r"name one of its data sets, dataset_info\.json#NAME; fix: one of: mine, other"
        ):
            listed(wrong)
