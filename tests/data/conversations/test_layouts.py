import pytest

from mlflow_finetune_plugin.data.conversations.conversion import to_conversation
from mlflow_finetune_plugin.data.conversations.layouts import Layout, detect_layout
from mlflow_finetune_plugin.errors import DataError

USER, ASSISTANT, SYSTEM = ({"role": role, "content": role[0]} for role in ("user", "assistant", "system"))


def text_turns(layout, row):
    return [(message["role"], message["content"]) for message in to_conversation(layout, row).messages]


# the guess -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "shown", "turns"),
    [
        (
            {"prompt": "p", "completion": "c"},
            "prompt_completion: prompt -> completion",
            [("user", "p"), ("assistant", "c")],
        ),
        (
            {"prompt": "p", "response": "r"},
            "prompt_completion: prompt -> response",
            [("user", "p"), ("assistant", "r")],
        ),
        (
            {"input": "0 47", "output": "47"},
            "prompt_completion: input -> output",
            [("user", "0 47"), ("assistant", "47")],
        ),
        (
            {"question": "q", "answer": "a"},
            "prompt_completion: question -> answer",
            [("user", "q"), ("assistant", "a")],
        ),
        (
            {"instruction": "i", "response": "r"},
            "prompt_completion: instruction -> response",
            [("user", "i"), ("assistant", "r")],
        ),
        (
            {"system": "s", "prompt": "p", "completion": "c"},
            "prompt_completion: system, prompt -> completion",
            [("system", "s"), ("user", "p"), ("assistant", "c")],
        ),
        (
            {"prompt": [SYSTEM, USER], "completion": [ASSISTANT]},
            "conversational: prompt -> completion",
            [("system", "s"), ("user", "u"), ("assistant", "a")],
        ),
        ({"messages": [USER, ASSISTANT]}, "messages: messages", [("user", "u"), ("assistant", "a")]),
        ({"conversations": [USER, ASSISTANT]}, "messages: conversations", [("user", "u"), ("assistant", "a")]),
        (
            {"conversations": [{"from": "human", "value": "h"}, {"from": "gpt", "value": "g"}], "system": "s"},
            "sharegpt: system, conversations",
            [("system", "s"), ("user", "h"), ("assistant", "g")],
        ),
        (
            {"instruction": "i", "input": "x", "output": "o"},
            "alpaca: instruction, input -> output",
            [("user", "i\n\nx"), ("assistant", "o")],
        ),
        ({"instruction": "i", "output": "o"}, "alpaca: instruction -> output", [("user", "i"), ("assistant", "o")]),
        (
            {"instruction": "i", "input": "", "output": "o", "system": "s", "history": [["a", "b"], ["c", "d"]]},
            "alpaca: system, history, instruction, input -> output",
            [
                *[("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
                *[("user", "i"), ("assistant", "o")],
            ],
        ),
        (
            {"instruction": "i", "context": "x", "response": "r", "category": "c"},
            "alpaca: instruction, context -> response",
            [("user", "i\n\nx"), ("assistant", "r")],
        ),
        (
            {"question": "q", "context": "x", "answer": "a"},
            "alpaca: question, context -> answer",
            [("user", "q\n\nx"), ("assistant", "a")],
        ),
        (
            {
                "id": 1,
                "title": "t",
                "question": "q",
                "context": "x",
                "answers": {"text": ["a", "a"], "answer_start": [1, 9]},
            },
            "alpaca: question, context -> answers",
            [("user", "q\n\nx"), ("assistant", "a")],
        ),
        (
            {"message_1": "p", "message_2": "r"},
            "prompt_completion: message_1 -> message_2",
            [("user", "p"), ("assistant", "r")],
        ),
        (
            {"system_prompt": "s", "question": "q", "response": "r"},
            "prompt_completion: system_prompt, question -> response",
            [("system", "s"), ("user", "q"), ("assistant", "r")],
        ),
        (
            {"dialogue": [{"from": "human", "value": "h"}, {"from": "bot", "value": "b"}]},
            "sharegpt: dialogue",
            [("user", "h"), ("assistant", "b")],
        ),
        (
            {"dialogue": "d", "summary": "s"},
            "prompt_completion: dialogue -> summary",
            [("user", "d"), ("assistant", "s")],
        ),
        (
            {
                "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
                "contents": [{"role": "user", "parts": [{"text": "u"}]}, {"role": "model", "parts": [{"text": "m"}]}],
            },
            "messages: systemInstruction, contents",
            [("system", "s"), ("user", "u"), ("assistant", "m")],
        ),
        (
            {
                "messages": [
                    {"role": "System", "content": "s"},
                    {"role": "User", "content": "u"},
                    {"role": "Chatbot", "content": "c"},
                ]
            },
            "messages: messages",
            [("system", "s"), ("user", "u"), ("assistant", "c")],
        ),
        ({"text": "t", "category": "c"}, "label: text -> category", [("user", "t"), ("assistant", "c")]),
        ({"utterance": "t", "intent": "c", "id": 7}, "label: utterance -> intent", [("user", "t"), ("assistant", "c")]),
        ({"review": "t", "sentiment": 1}, "label: review -> sentiment", [("user", "t"), ("assistant", "1")]),
        ({"text": "t"}, "text: text", [("assistant", "t")]),
        ({"text": "t", "url": "u", "id": 7}, "text: text", [("assistant", "t")]),
        (
            {"id": 1, "instruction": "i", "instances": [{"input": "x", "output": "o"}]},
            "instances: instruction -> instances",
            [("user", "i\n\nx"), ("assistant", "o")],
        ),
    ],
)
def test_layout_is_detected_printed_and_used(row, shown, turns):
    layout = detect_layout([row])
    assert str(layout) == shown
    assert text_turns(layout, row) == turns


def test_columns_of_later_rows_count_too():
    assert (
        str(detect_layout([{"instruction": "i", "output": "o"}, {"input": "x"}]))
        == "alpaca: instruction, input -> output"
    )


def test_columns_named_by_hand_decide_the_layout():
    row = {"q": "what", "a": "that", "text": "t", "label": "l"}
    assert detect_layout([row], {"prompt": "q", "completion": "a"}) == Layout(
        "prompt_completion", {"prompt": "q", "completion": "a"}
    )
    assert str(detect_layout([row], {"text": "q", "label": "a"})) == "label: q -> a"
    assert str(detect_layout([row], {"text": "q"})) == "label: q -> label"


def test_a_named_layout_settles_what_the_columns_leave_open():
    row = {"prompt": "p", "completion": "c", "text": "t", "label": True}
    assert str(detect_layout([row], layout="label")) == "label: text -> label"
    assert str(detect_layout([row], layout="prompt_completion")) == "prompt_completion: prompt -> completion"


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (
            {"foo": 1, "bar": 2},
            {},
            ["columns foo, bar", "data.columns: {prompt: ..., completion: ...}", "alpaca: instruction"],
        ),
        ({"text": "t", "mood": "m"}, {}, ["the columns text, mood fit no known layout", "data.layout"]),
        ({"text": None, "url": "u"}, {}, ["the column text is empty in the first rows"]),
        (
            {"text": "t", "label": 1, "label_text": "x"},
            {},
            ["2 layouts: label: text -> label; or label: text -> label_text"],
        ),
        (
            {"prompt": "p", "completion": "c", "response": "r"},
            {},
            [
                "fit 2 layouts",
                "{prompt: prompt, completion: completion} (-P data.columns.prompt=prompt -P data.columns.completion=completion)",
            ],
        ),
        ({"my card is late": 1, "card": 2}, {}, ["is the first line of the file a header?"]),
        ({"a": 1}, {"layout": "alpacca"}, ["'alpacca' is not a known layout", "pick one of: auto, messages, sharegpt"]),
        ({"a": 1}, {"layout": "messages"}, ["messages: messages|conversations|conversation"]),
        (
            {"a": 1},
            {"columns": {"promt": "a"}},
            ["data.columns: 'promt' is not a part of a layout; did you mean 'prompt'?"],
        ),
        (
            {"text": 1},
            {"columns": {"text": "txt"}},
            ["data.columns.text: the file has no column 'txt'; did you mean 'text'?"],
        ),
    ],
)
def test_what_cannot_be_guessed_names_columns_layouts_and_fix(row, options, words):
    with pytest.raises(DataError) as caught:
        detect_layout([row], **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_two_columns_are_offered_as_label_or_pair_in_the_command_to_type():
    rows = [{"the ticket": f"Where is my order number {i}?", "queue": ("sales", "support")[i % 2]} for i in range(12)]
    with pytest.raises(DataError, match="fit no known layout") as caught:
        detect_layout(rows)
    assert "perhaps -P 'data.columns.text=the ticket' -P data.columns.label=queue" in str(caught.value)
    with pytest.raises(DataError, match=r"perhaps -P data\.columns\.prompt=ask -P data\.columns\.completion=say"):
        detect_layout([{"ask": f"What is {i}?", "say": f"It is {i}."} for i in range(12)])


@pytest.mark.parametrize(
    ("columns", "prompt", "completion"),
    [
        ({"source": "The house {}.", "target": "Das Haus {}."}, "source", "target"),
        ({"target": "Das Haus {}.", "source": "The house {}."}, "source", "target"),
        ({"id": "row {}", "source": "The house {}.", "target": "Das Haus {}.", "lang": "de"}, "source", "target"),
        ({"source": "The house {}.", "target": "Das Haus {}.", "score": 0.5}, "source", "target"),
        ({"src": "The house {}.", "tgt": "Das Haus {}."}, "src", "tgt"),
        ({"summary": "It is {}.", "body": "A long text on {}."}, "body", "summary"),
        ({"en": "The house {}.", "de": "Das Haus {}."}, "en", "de"),
    ],
)
@pytest.mark.parametrize("count", [3, 12])
def test_the_command_for_parallel_columns_is_printed_and_works(columns, prompt, completion, count):
    rows = [{n: v.format(i) if isinstance(v, str) else v for n, v in columns.items()} for i in range(count)]
    with pytest.raises(DataError, match="fit no known layout") as caught:
        detect_layout(rows)
    offer = (
        f"perhaps -P data.columns.prompt={prompt} -P data.columns.completion={completion} (two columns of text, in this"
    )
    assert offer in str(caught.value)
    layout = detect_layout(rows, {"prompt": prompt, "completion": completion})
    assert str(layout) == f"prompt_completion: {prompt} -> {completion}"


@pytest.mark.parametrize(
    "columns",
    [
        {"source": "wiki", "target": "Text {}."},  # the origin of the text, and no answer
        {"system": "Be nice.", "talk": "USER: q{}"},
        {"first": "Text {}.", "second": "Text {}.", "same": 1},  # a task on two texts
        {"a": "Text {}.", "b": "Text {}.", "c": "Text {}."},
        {"source": 1, "target": "Text {}."},
    ],
)
def test_no_command_is_offered_where_the_task_is_not_clear(columns):
    rows = [{n: v.format(i) if isinstance(v, str) else v for n, v in columns.items()} for i in range(12)]
    with pytest.raises(DataError, match="fit no known layout") as caught:
        detect_layout(rows)
    assert "perhaps" not in str(caught.value)


def test_label_beside_a_text_makes_it_no_document():
    assert str(detect_layout([{"text": "t", "label": "l"}])) == "label: text -> label"
    assert str(detect_layout([{"body": "t", "label": "l"}], {"text": "body"}, "text")) == "text: body"


def test_a_file_without_a_header_is_recognised():
    rows = [
        {"Where is my order?": f"Where is my order number {i}?", "sales": ("sales", "support")[i % 2]}
        for i in range(12)
    ]
    with pytest.raises(DataError, match="the file has no header: its first line holds data") as caught:
        detect_layout(rows)
    assert "data.columns" not in str(caught.value)
    with pytest.raises(DataError, match="is the first line of the file a header") as caught:
        detect_layout([{"What is one?": f"What is {i}?", "It is one.": f"It is {i}."} for i in range(12)])
    assert "perhaps" not in str(caught.value)
