"""Columns that a layout does not use: reported, or refused where they look like a part of the task."""

import re

import pytest

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

TEXTS = [f"Table number {i} has {i} rows." for i in range(10)]


def rows(**columns):
    """Return ten prompts and completions with further columns; a list has a value for each row."""
    return [
        {"prompt": f"p{i}", "completion": f"c{i}"}
        | {name: value[i] if isinstance(value, list) else value for name, value in columns.items()}
        for i in range(10)
    ]


def unused_after_reading(data, settings=None):
    reading = interpret(data, settings or ColumnSettings())
    for row in data:
        reading.conversations(row)
    reading.check()
    return dict(reading.unused.counts)


@pytest.mark.parametrize(
    ("columns", "counts"),
    [
        ({"id": list(range(10)), "source": TEXTS}, {"id": 10, "source": 10}),
        ({"category": "open qa about the weather", "difficulty": None}, {"category": 10}),
        ({"key": [f"{i:032x}" for i in range(10)]}, {"key": 10}),
        ({"score": [i / 7 for i in range(10)]}, {"score": 10}),
        ({"whole": [f"### Question: p{i} ### Answer: c{i}" for i in range(10)]}, {"whole": 10}),
        ({"page_url": [f"https://example.org/a b/{i}" for i in range(10)]}, {"page_url": 10}),
        ({"language": "English"}, {"language": 10}),
        ({"code": list(range(10))}, {"code": 10}),
        ({"wording": [f"Below is a task.\n\np{i}\n\n### Response:" for i in range(10)]}, {"wording": 10}),
        ({"text": [f"p{i} {'' if i % 2 else 'please'}" for i in range(10)]}, {"text": 10}),
        (
            {"prompt": [f"a word {i}" for i in range(10)], "words": [["a", "word", str(i)] for i in range(10)]},
            {"words": 10},
        ),
    ],
)
def test_a_column_that_is_not_of_the_task_is_counted(columns, counts):
    assert unused_after_reading(rows(**columns)) == counts


@pytest.mark.parametrize(
    ("columns", "name"),
    [
        ({"facts": TEXTS}, "facts"),
        ({"facts": ["事実の表は二十文字よりも長い文章であることが必要です" + str(i) for i in range(10)]}, "facts"),
        ({"context": "the same in every row"}, "context"),
        ({"choices": [["p", "c"]] * 10}, "choices"),
        ({"choices": [["a b c d e", f"the number {i}"] for i in range(10)]}, "choices"),
        ({"steps": [[f"first do {i}", "then stop"] for i in range(10)]}, "steps"),
        ({"story": TEXTS[:2] * 5}, "story"),
        ({"document": "One for all."}, "document"),
        ({"documents": [[{"text": "One for all."}]] * 10}, "documents"),
        ({"text": TEXTS[:2] * 5}, "text"),
        ({"code": [f"x={i}" for i in range(10)]}, "code"),
        ({"table": [[[i, 2]] for i in range(10)]}, "table"),
        ({"language": ["fr", "de"] * 5}, "language"),
        ({"whole": [f"{text} So, p{i}?" for i, text in enumerate(TEXTS)]}, "whole"),
    ],
)
def test_a_column_that_looks_like_a_part_of_the_task_stops_the_run(columns, name):
    data = rows(**columns)
    with pytest.raises(
        DataError, match=f"the column '{name}' is not used, and looks like a part of the task"
    ) as caught:
        interpret(data, ColumnSettings())
    text = str(caught.value)
    assert "10 of 10 rows have a value in it, for example" in text
    assert f"data.ignore: [{name}]" in text
    assert "data.prompt_template" in text
    assert unused_after_reading(data, ColumnSettings(ignore=(name,))) == {}
    composed = interpret(data, ColumnSettings(prompt_template=f"{{{{ prompt }}}} with {{{{ {name} }}}}"))
    (conversation,) = composed.conversations(data[3])
    assert conversation.messages[0]["content"] == f"p3 with {data[3][name]}"


def test_facts_of_a_few_rows_are_a_part_of_the_task():
    data = rows(facts=[text if i < 3 else None for i, text in enumerate(TEXTS)])
    with pytest.raises(
        DataError, match="'facts' is not used, and looks like a part of the task: 3 of 10 rows"
    ) as caught:
        interpret(data, ColumnSettings())
    template = str(caught.value).partition('data.prompt_template: "')[2].partition('"')[0].replace("\\n", "\n")
    composed = interpret(data, ColumnSettings(prompt_template=template))
    prompts = [composed.conversations(row)[0].messages[0]["content"] for row in data]
    assert prompts == [*(f"p{i}\n\n{TEXTS[i]}" for i in range(3)), *(f"p{i}" for i in range(3, 10))]


def test_a_category_is_a_part_of_questions_in_the_form_of_jeopardy():
    data = [{"question": f"q{i}", "answer": f"a{i}", "category": f"HISTORY {i % 4}"} for i in range(10)]
    with pytest.raises(DataError, match="'category' is not used, and looks like a part of the task"):
        interpret(data, ColumnSettings())
    assert unused_after_reading([{**row, "category": "open_qa"} for row in data]) == {"category": 10}


def test_a_column_that_begins_very_late_stops_the_run_at_the_end():
    reading = interpret(rows(), ColumnSettings())
    for row in [*rows() * 60, *rows(facts=TEXTS)]:
        reading.conversations(row)
    with pytest.raises(DataError, match="'facts' is not used, and looks like a part of the task: 10 of 610 rows"):
        reading.check()


@pytest.mark.parametrize(
    ("columns", "detail"),
    [
        (
            {"chat_template_kwargs": {"enable_thinking": False}},
            'chat_template_kwargs: {"enable_thinking": false}, and the',
        ),
        ({"objects": {"ref": ["x"], "bbox": [[1, 2]]}}, "objects: places within a picture"),
        ({"audio_path": "a.wav"}, "audio_path: this version trains on text and pictures only"),
        ({"weight": 0}, "weight: 0, and every row counts the same here"),
        ({"weight": "0.5"}, "weight: '0.5', and every row counts the same here"),
        ({"loss": False}, "loss: false, and every row carries loss here"),
        ({"train_on_inputs": True}, "train_on_inputs: true, and only answers are trained on here"),
    ],
)
def test_a_row_with_a_mark_that_has_no_effect_here_is_left_out(columns, detail):
    (name,) = columns
    row = {"prompt": "p", "completion": "c", **columns}
    with pytest.raises(RowFault, match=re.escape(detail)) as caught:
        interpret([row], ColumnSettings()).conversations(row)
    assert f"data.ignore: [{name}] trains" in str(caught.value)
    assert interpret([row], ColumnSettings(ignore=(name,))).conversations(row)
    assert interpret([row], ColumnSettings(prompt_template=f"{{{{ prompt }}}} {{{{ {name} }}}}")).conversations(row)


@pytest.mark.parametrize(
    "columns",
    [{"weight": 1}, {"weight": "1.0"}, {"loss": True}, {"loss": 2.25}, {"train_on_inputs": False}, {"objects": 3}],
)
def test_a_mark_that_changes_nothing_is_counted(columns):
    (name,) = columns
    assert unused_after_reading(rows(**columns)) == {name: 10}


def test_prompts_in_the_format_of_metharme_are_left_out():
    row = {"prompt": "<|system|>Be nice.<|user|>Hello<|model|>", "generation": "Hi."}
    with pytest.raises(
        RowFault, match=r"prompt: the markers <.system.>, <.user.> and <.model.> of Metharme; write each row"
    ):
        interpret([row], ColumnSettings()).conversations(row)
    row = {"prompt": "What does <|model|> mean?", "generation": "A marker."}
    assert interpret([row], ColumnSettings()).conversations(row)


def test_the_template_of_the_fix_works():
    data = rows(facts=TEXTS)
    with pytest.raises(DataError) as caught:
        interpret(data, ColumnSettings())
    template = str(caught.value).partition('data.prompt_template: "')[2].partition('"')[0].replace("\\n", "\n")
    assert template == "{{ prompt }}\n\n{{ facts }}"
    assert interpret(data, ColumnSettings(prompt_template=template))
    turns = [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "context": "c d"}]
    with pytest.raises(DataError, match="trains without it, or write it into the turns"):
        interpret(turns, ColumnSettings())


@pytest.mark.parametrize("name", ["rationale", "reasoning", "explanation", "deepseek_reasoning"])
def test_the_way_to_the_answer_is_not_offered_as_a_part_of_the_prompt(name):
    data = rows(**{name: TEXTS})
    with pytest.raises(DataError, match="to learn it too, write it into the answers") as caught:
        interpret(data, ColumnSettings())
    assert "prompt_template" not in str(caught.value)
    assert unused_after_reading(data, ColumnSettings(ignore=(name,))) == {}


def test_a_copy_of_the_whole_conversation_is_no_part_of_the_task():
    data = [{"instruction": f"Do {i}", "input": f"with {i}", "output": f"done {i}"} for i in range(9)]
    copies = [
        {**row, "text": f"Below is a task. {row['instruction']} ## {row['input']} ## {row['output']}"} for row in data
    ]
    assert unused_after_reading(copies) == {"text": 9}


def test_a_column_of_later_rows_stops_the_run_at_the_end():
    reading = interpret(rows(), ColumnSettings())
    for row in [*rows(), *rows(context=TEXTS)]:
        reading.conversations(row)
    with pytest.raises(DataError, match="'context' is not used, and looks like a part of the task: 10 of 20 rows"):
        reading.check()


def test_text_that_repeats_a_turn_is_no_part_of_the_task():
    turns = [[{"role": "user", "content": f"Why is {i} so?"}, {"role": "assistant", "content": "so"}] for i in range(9)]
    data = [{"prompt": messages[0]["content"], "messages": messages} for messages in turns]
    assert unused_after_reading(data) == {"prompt": 9}


# data.prompt_template ------------------------------------------------------------------------------------------------


def composed(row, template, **settings):
    reading = interpret([row], ColumnSettings(prompt_template=template, **settings))
    (conversation,) = reading.conversations(row)
    return str(reading.layout), [message["content"] for message in conversation.messages]


def test_a_template_composes_the_prompt_of_several_columns():
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": 1}
    assert composed(row, "{{ premise }} So {{ hypothesis | lower }}") == (
        "label: data.prompt_template -> label",
        ["It rains. So it is wet.", "1"],
    )
    row = {"question": "Which?", "options": ["a", "b"], "the key": "b", "system": "Be brief."}
    text = "{{ question }}{% for option in options %}\n- {{ option }}{% endfor %}"
    assert composed(row, text, columns={"completion": "the key"}) == (
        "prompt_completion: system, data.prompt_template -> the key",
        ["Be brief.", "Which?\n- a\n- b", "b"],
    )
    assert composed(row, "{{ row['the key'] }}?", columns={"completion": "question"}, ignore=("options",))[1][1:] == [
        *("b?", "Which?"),
    ]


def test_a_template_cannot_leave_its_sandbox():
    row = {"q": "q", "answer": "a"}
    with pytest.raises(Exception, match="prompt template fails: access to attribute '__class__'"):
        interpret([row], ColumnSettings(prompt_template="{{ q.__class__.__mro__ }}")).conversations(row)


@pytest.mark.parametrize(
    ("template", "row", "fault"),
    [
        (
            "{{ q }} {{ c }}",
            {"q": "q", "c": None, "answer": "a"},
            "null field: data.prompt_template writes a null value",
        ),
        ("{{ q + 1 }}", {"q": "q", "answer": "a"}, "prompt template fails: TypeError"),
        ("{% if c %}{{ c }}{% endif %}", {"c": None, "answer": "a"}, "empty prompt"),
    ],
)
def test_a_row_that_the_template_cannot_compose_is_left_out(template, row, fault):
    with pytest.raises(Exception, match=fault):
        interpret([row], ColumnSettings(prompt_template=template)).conversations(row)


@pytest.mark.parametrize(
    ("template", "options", "words"),
    [
        ("{{ q", {}, "data.prompt_template, line 1: "),
        ("no column", {}, "it reads no column"),
        ("{{ qestion }}", {}, "the file has no column 'qestion'; fix: use its columns: q, answer, response"),
        ("{{ q }}", {}, "which column holds the answer is not clear"),
        ("{{ q }}", {"columns": {"prompt": "q"}}, "data.columns.prompt: data.prompt_template composes the prompt"),
        ("{{ q }}", {"layout": "messages"}, "the layout messages has no prompt to compose"),
        ("{{ q }}", {"columns": {"completion": "answer"}, "ignore": ("answer",)}, "'answer' is also in data.columns"),
    ],
)
def test_a_template_that_does_not_fit_names_the_fix(template, options, words):
    row = {"q": "q", "answer": "a", "response": "r"}
    with pytest.raises(DataError) as caught:
        interpret([row], ColumnSettings(prompt_template=template, **options))
    assert words in str(caught.value)


# forms of other tools ------------------------------------------------------------------------------------------------


def test_query_response_and_history_of_ms_swift_are_turns():
    row = {"system": "s", "query": "q", "response": "r", "history": [["q1", "a1"], ["q2", "a2"]]}
    reading = interpret([row], ColumnSettings())
    assert str(reading.layout) == "alpaca: system, history, query -> response"
    (conversation,) = reading.conversations(row)
    assert [turn["content"] for turn in conversation.messages] == ["s", "q1", "a1", "q2", "a2", "q", "r"]
    (conversation,) = reading.conversations({"query": "q", "response": "r", "history": None})
    assert [turn["content"] for turn in conversation.messages] == ["q", "r"]


def test_exchanges_of_ms_swift_are_turns():
    row = {"system": "s", "conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}]}
    reading = interpret([row], ColumnSettings())
    assert str(reading.layout) == "messages: system, conversation"
    (conversation,) = reading.conversations(row)
    assert [(turn["role"], turn["content"]) for turn in conversation.messages] == [
        ("system", "s"),
        *(("user", "q1"), ("assistant", "a1")),
        *(("user", "q2"), ("assistant", "a2")),
    ]
    with pytest.raises(RowFault, match="null field: content"):
        reading.conversations({"conversation": [{"human": "q", "assistant": None}]})


def test_tool_turns_of_sharegpt_are_read():
    turns = [
        ("human", "q"),
        ("gpt", "<tool_call>{}</tool_call>"),
        ("tool", "<tool_response>7</tool_response>"),
        ("gpt", "7"),
    ]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    (conversation,) = interpret([row], ColumnSettings()).conversations(row)
    assert [turn["role"] for turn in conversation.messages] == ["user", "assistant", "tool", "assistant"]
