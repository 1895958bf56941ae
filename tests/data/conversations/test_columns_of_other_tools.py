"""Columns with a meaning in other tools: refused by name where they say something, and no reason to stop where they do not."""

import re

import pytest

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.data.conversations.row_faults import RowFault
from mlflow_finetune_plugin.errors import DataError

CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}


def pairs(**columns):
    """Return twelve prompts and completions with further columns; a list has the values of the rows in turn."""
    return [
        {"prompt": f"p{i}", "completion": f"c{i}"}
        | {name: value[i % len(value)] if isinstance(value, list) else value for name, value in columns.items()}
        for i in range(12)
    ]


def unused(rows, **settings):
    reading = interpret(rows, ColumnSettings(**settings))
    for row in rows:
        reading.conversations(row)
    reading.check()
    return reading.unused


@pytest.mark.parametrize(
    ("columns", "similar", "words"),
    [
        ({"deleted": [True, False]}, {"deleted": False}, "the column 'deleted' is true in 6 of 12 rows"),
        ({"suffix": "return 1"}, {"affix": "return 1"}, "'suffix' is not used, and looks like a part of the task"),
        ({"is_correct": [True, False]}, {"is_correct": True}, "says of 6 of 12 answers that they are not good"),
        ({"accepted": [1, 1, 0]}, {"accepted": 1}, "says of 4 of 12 answers that they are not good"),
        ({"passed": ["true", "False"]}, {"passed": ["true", "yes"]}, "the column 'passed' says of 6 of 12 answers"),
        ({"correct": [1, 0]}, {"correct": [0, 1, 2, 3]}, "the column 'correct' says"),
        (
            {"split": ["train", "test"]},
            {"split": "test"},
            "divides the rows into those to train on and those to hold out (test)",
        ),
        ({"set": ["Training", "dev"]}, {"set": ["red", "blue"]}, "hold out (dev)"),
        (
            {"corrected": ["yes", "so"]},
            {"corrected": [True, False]},
            "may hold a better answer than the one that is used",
        ),
        ({"revision": "It is so."}, {"revision": "3f2a"}, "may hold a better answer than the one that is used"),
        ({"examples": [["a b", "c d"]]}, {"examples": 3}, "'examples' is not used, and looks like a part of the task"),
        ({"persona": "I am a baker."}, {"personal": "no"}, "'persona' is not used, and looks like a part of the task"),
    ],
)
def test_a_column_that_changes_what_is_learned_stops_the_run(columns, similar, words):
    (name,) = columns
    with pytest.raises(DataError, match=re.escape(words)) as caught:
        interpret(pairs(**columns), ColumnSettings())
    assert f"data.ignore: [{name}] (-P data.ignore={name})" in str(caught.value)
    assert name not in unused(pairs(**columns), ignore=(name,)).counts
    assert set(unused(pairs(**similar)).counts) == set(similar)


COMPARED = {
    "pairs": {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Green."},
    "rated": {"prompt": "Sky?", "completion": "Blue.", "label": True},
    "prompts": {"prompt": "Sky?"},
}


@pytest.mark.parametrize("form", COMPARED)
@pytest.mark.parametrize(
    "columns",
    [
        {"is_correct": False},
        {"accepted": "false"},
        {"score": 1, "rating": 5.0},
        {"corrected": "Blue.", "critique": "It is not green, and the answer should say so."},
    ],
)
def test_columns_that_judge_answers_describe_compared_answers_and_prompts(form, columns):
    rows = [{**COMPARED[form], **columns}, {**COMPARED[form], **dict.fromkeys(columns)}]
    counted = (
        unused(rows * 6, form=form) if form != "rated" else unused([*rows, {**rows[0], "label": False}], form=form)
    )
    assert set(counted.counts) == (set() if form == "prompts" else set(columns))
    assert counted.scores == {}


@pytest.mark.parametrize("form", ["pairs", "rated"])
def test_removed_and_held_out_rows_of_compared_answers_stop_the_run(form):
    first, second = (COMPARED[form], {**COMPARED[form], "prompt": "Sea?"})
    with pytest.raises(DataError, match="the column 'deleted' is true in 1 of 2 rows"):
        interpret([{**first, "deleted": True}, {**second, "deleted": False}], ColumnSettings(form=form))
    with pytest.raises(DataError, match="the column 'split' divides the rows"):
        interpret([{**first, "split": "train"}, {**second, "split": "test"}], ColumnSettings(form=form))


def test_wrong_answers_are_ratings_where_the_objective_learns_from_them():
    rows = pairs(is_correct=[True, False])
    with pytest.raises(DataError, match=r"fix: -e kto -P data\.columns\.label=is_correct trains on ratings"):
        interpret(rows, ColumnSettings())
    reading = interpret(rows, ColumnSettings(form="rated", columns={"label": "is_correct"}))
    assert [answer.is_good for row in rows for answer in reading.conversations(row)] == [True, False] * 6
    reading.check()


def test_wrong_answers_and_held_out_rows_that_begin_late_stop_the_run_at_the_end():
    for columns, later in (({"is_correct": True}, {"is_correct": False}), ({"split": "train"}, {"split": "test"})):
        reading = interpret(pairs(**columns), ColumnSettings())
        for row in [*pairs(**columns), *pairs(**later)]:
            reading.conversations(row)
        with pytest.raises(DataError, match=r"are not good|divides the rows"):
            reading.check()


@pytest.mark.parametrize(
    ("column", "values", "scores"),
    [
        ("rating", [1, 5], {"rating": (1, 5)}),
        ("helpfulness", ["0", "4"], {"helpfulness": (0, 4)}),
        ("reward", [-0.5, 2.25], {"reward": (-0.5, 2.25)}),
        ("rating", [5], {}),
        ("score", ["2:1", "0:0"], {}),
        ("points", [1, 5], {}),
    ],
)
def test_numbers_that_may_rate_answers(column, values, scores):
    assert unused(pairs(**{column: values})).scores == scores
    assert unused(pairs(**{column: values}), ignore=(column,)).scores == {}


def test_numbers_beside_classes_rate_no_answers():
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "score": i} for i in range(12)]
    assert unused(rows).scores == {}


@pytest.mark.parametrize(
    ("column", "value", "silent", "words"),
    [
        ("train", False, True, "train: false, and every row carries loss here"),
        ("trainable", "false", "true", "trainable: false, and every row carries loss here"),
        ("loss_mask", 0, 1, "loss_mask: false, and every row carries loss here"),
        ("loss_mask", [0, 1], None, "it marks single tokens"),
        ("assistant_masks", [0, 1], [], "it marks single tokens"),
        ("mask", "Assistant", "User", "the turns of the assistant are what is learned here"),
        (
            "response_format",
            {"type": "json_schema"},
            {"type": "text"},
            "json_schema, which OpenAI writes into the prompt",
        ),
        ("tool_choice", "required", "auto", '"required", and a template writes no choice of a tool'),
    ],
)
def test_a_mark_of_a_row_leaves_it_out(column, value, silent, words):
    row = {**CHAT, column: value}
    with pytest.raises(RowFault, match=re.escape(words)) as caught:
        interpret([row], ColumnSettings()).conversations(row)
    assert f"data.ignore: [{column}]" in str(caught.value)
    assert interpret([row], ColumnSettings(ignore=(column,))).conversations(row)
    assert interpret([CHAT], ColumnSettings()).conversations({**CHAT, column: silent})


FORMATS = {
    "Llama 2 and Mistral": "<s>[INST] q{} [/INST]",
    "Llama 3": "<|start_header_id|>user<|end_header_id|>\n\nq{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "ChatML": "<|im_start|>user\nq{}<|im_end|>\n<|im_start|>assistant\n",
    "Gemma": "<start_of_turn>user\nq{}<end_of_turn>\n<start_of_turn>model\n",
    "Zephyr": "<|user|>\nq{}</s>\n<|assistant|>\n",
    "Alpaca": "Below is a task.\n\n### Instruction:\nq{}\n\n### Response:\n",
    "Guanaco": "### Human: q{}### Assistant: ",
    "Vicuna": "A chat. USER: q{} ASSISTANT:",
    "Anthropic's completions": "\n\nHuman: q{}\n\nAssistant:",
}


@pytest.mark.parametrize("name", FORMATS)
def test_texts_and_prompts_in_a_prompt_format_are_refused_until_the_layout_is_named(name):
    prompts = [FORMATS[name].format(i) for i in range(3)]
    files = {
        "text": [{"text": f"{prompt} a{i}"} for i, prompt in enumerate(prompts)],
        "prompt_completion": [{"prompt": prompt, "completion": f"a{i}"} for i, prompt in enumerate(prompts)],
    }
    for layout, rows in files.items():
        with pytest.raises(
            DataError, match=f"is in the format of {name}: .* fix: write each row as messages"
        ) as caught:
            interpret(rows, ColumnSettings())
        assert f"data.layout: {layout}" in str(caught.value)
        assert interpret(rows, ColumnSettings(layout=layout)).conversations(rows[0])


@pytest.mark.parametrize(
    "texts",
    [
        ["A model reads [INST] and [/INST] as markers.", "Another text."],
        ["### Instruction: mix. ### Result: dough."],
        ["The USER: root", "ASSISTANT: none"],
        ["Every human has an assistant."],
    ],
)
def test_texts_about_formats_are_documents(texts):
    rows = [{"text": text} for text in texts]
    assert str(interpret(rows, ColumnSettings()).layout) == "text: text"


def test_a_target_of_sentences_is_an_answer_and_a_target_of_classes_a_label():
    rows = [{"sentence": f"he go home {i}", "target": f"He goes home {i}."} for i in range(12)]
    assert str(interpret(rows, ColumnSettings()).layout) == "prompt_completion: sentence -> target"
    for values in (["good", "bad"], ["very good", "very bad"]):
        rows = [{"sentence": f"film {i}", "target": values[i % 2]} for i in range(12)]
        assert str(interpret(rows, ColumnSettings()).layout) == "label: sentence -> target"
    rows = [{"sentence": f"film {i}", "target": f"class {i}"} for i in range(12)]
    assert str(interpret(rows, ColumnSettings(layout="label")).layout) == "label: sentence -> target"


def test_constraints_of_unnatural_instructions_are_refused():
    instance = {"input": "x", "output": "y", "constraints": "None."}
    row = {"instruction": "Do it.", "instances": [instance]}
    reading = interpret([row], ColumnSettings())
    assert len(reading.conversations(row)) == 1
    with pytest.raises(RowFault, match="constraints str 'In French' of an instance: a part of the prompt"):
        reading.conversations({**row, "instances": [{**instance, "constraints": "In French"}]})


def test_a_turn_as_the_answer_to_a_text_is_refused():
    row = {"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}
    with pytest.raises(
        RowFault, match="completion is a turn and the prompt is text; write both as text, or both as lists"
    ):
        interpret([row], ColumnSettings()).conversations(row)
    row = {"prompt": "q", "completion": {"role": "baker", "age": 7}}
    assert interpret([row], ColumnSettings()).conversations(row)
