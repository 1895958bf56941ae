"""Each sentence of the report: rows for which it must be there, and similar rows for which it must not."""

import json

import pytest
from data_requests import jsonl, pairs, request

from mlflow_finetune_plugin.data import DataFile, prepare
from mlflow_finetune_plugin.data.report.checks import label_findings
from mlflow_finetune_plugin.data.report.tally import Labels
from mlflow_finetune_plugin.data.tokens.encoding_faults import encoding_faults
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

CLEAN = pairs(20, 100)
SAYS = "the chat template writes 'Say: ' before each answer"
PREFIXED = (
    "{% for m in messages %}{{ ('Say: ' if m['role'] == 'assistant' else '') + m['content'] + eos_token }}{% endfor %}"
)


def user(text, **fields):
    return {"role": "user", "content": text, **fields}


def assistant(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def chat(*turns):
    return {"messages": list(turns)}


def chats(count, *turns):
    """Return chats in which each text differs by a number."""
    return [chat(*({**turn, "content": f"{turn['content']} {i}"} for turn in turns)) for i in range(count)]


def row(prompt, completion, **columns):
    return {"prompt": prompt, "completion": completion, **columns}


def label(text, name):
    return {"text": text, "label": name}


def sentences(folder, renderer, train, held_out=None, **options):
    """Return the summary, the notes and the findings on these rows as one text."""
    files = (DataFile(jsonl(folder / "train.jsonl", train), "t", weight=options.pop("weight", 1.0)),)
    eval_files = 0.2 if held_out is None else (DataFile(jsonl(folder / "eval.jsonl", held_out), "t"),)
    report = prepare(request(files, eval_files, **options), renderer, folder / "out").report
    return "\n".join([report.summary(), *report.warnings, *map(str, report.findings), *report.notes])


ON_ROWS = {
    "developer turns of messages": (
        "20 developer turns were read as system turns",
        chats(20, {"role": "developer", "content": "d"}, user("q"), assistant("a")),
        chats(20, {"role": "system", "content": "d"}, user("a developer"), assistant("a")),
    ),
    "developer turns of ShareGPT": (
        "20 developer turns were read as system turns",
        [
            {"conversations": [{"from": role, "value": f"{role} {i}"} for role in ("developer", "human", "gpt")]}
            for i in range(20)
        ],
        [
            {"conversations": [{"from": role, "value": f"{role} {i}"} for role in ("system", "human", "gpt")]}
            for i in range(20)
        ],
    ),
    "one developer turn": (
        "1 developer turn was read as a system turn",
        [
            *chats(19, user("q"), assistant("a")),
            *chats(1, {"role": "developer", "content": "d"}, user("r"), assistant("a")),
        ],
        chats(20, user("q"), assistant("a")),
    ),
    "a turn that is excluded": (
        "20 assistant turns are context and carry no loss",
        chats(20, user("q"), assistant("a", weight=0), user("r"), assistant("b", weight=1)),
        chats(20, user("q"), assistant("a", weight=1), user("r", weight=0), assistant("b")),
    ),
    "a turn before the first user turn": (
        "20 assistant turns are context",
        chats(20, assistant("hello"), user("q"), assistant("a")),
        chats(20, {"role": "system", "content": "s"}, user("q"), assistant("a")),
    ),
    "a turn of a prompt": (
        "20 assistant turns are context",
        [{"prompt": [user(f"q{i}"), assistant("a"), user("r")], "completion": [assistant("b")]} for i in range(20)],
        [{"prompt": [user(f"q{i}")], "completion": [assistant("b")]} for i in range(20)],
    ),
    "reasoning that the template does not write": (
        "20 turns hold reasoning, which is left out",
        chats(20, user("q"), assistant("a", reasoning_content="I think.")),
        chats(20, user("q"), assistant("a <think>I think.</think>", reasoning_content="")),
    ),
    "an answer that is no text": (
        "20 answers are numbers, booleans or objects, and were written as text",
        [row(f"q{i}", i) for i in range(20)],
        [row(f"q{i}", str(i)) for i in range(20)],
    ),
    "one answer that is no text": (
        "1 answer is a number, boolean or object, and was written as text",
        [row("q", True), *CLEAN],
        [row("q", "true"), *CLEAN],
    ),
    "several answers": (
        "rows with several answers became 20 additional conversations",
        [row(f"q{i}", ["a", "b"]) for i in range(20)],
        [row(f"q{i}", ["a"]) for i in range(20)],
    ),
    "answers of SQuAD at several positions": (
        "rows with several answers became 1 additional conversation",
        [
            {"question": f"q{i}", "context": f"c{i}", "answers": {"text": ["a", "b"] if i == 0 else ["a"]}}
            for i in range(20)
        ],
        [{"question": f"q{i}", "context": f"c{i}", "answers": {"text": ["a", "a"]}} for i in range(20)],
    ),
    "plain text": (
        "plain text is used without the chat template",
        [{"text": f"document {i}"} for i in range(20)],
        [label(f"document {i}", "ab"[i % 2]) for i in range(20)],
    ),
    "the same answer everywhere": (
        "training rows have the same answer",
        [row(f"q{i}", "yes") for i in range(20)],
        [row(f"q{i}", "yes" if i % 5 else "no") for i in range(20)],
    ),
    "repeated rows": (
        "training row repeats an earlier row word for word",
        [row("q", "a"), row("q", "a"), *CLEAN],
        [row("q", "a"), row("q!", "a"), *CLEAN],
    ),
    "repeated turns after another system text": (
        "training row repeats an earlier row word for word",
        [row("q", "a", system="s"), row("q", "a", system="s"), *CLEAN],
        [row("q", "a", system="s"), row("q", "a", system="t"), *CLEAN],
    ),
    "rows that differ by case": (
        "training row repeats an earlier row except for case and blanks",
        [row("Why so?", "a"), row("why  so?", "A"), *CLEAN],
        [row("Why so?", "a"), row("Why, so?", "a"), *CLEAN],
    ),
    "a prompt with two answers": (
        "prompt has more than one answer",
        [row("q", "a"), row("q", "b"), *CLEAN],
        [row("q", "a"), row("q", "A "), *CLEAN],
    ),
    "a prompt with a list of answers": (
        "prompt has more than one answer",
        [row("q", ["a", "b"]), row("q", ["c"]), *CLEAN],
        [row("q", ["a", "b"]), row("q", ["b"]), *CLEAN],
    ),
    "a prompt after another conversation": (
        "prompt has more than one answer",
        [chat(user("p"), assistant("x"), user("q"), assistant(a)) for a in "ab"] + chats(20, user("r"), assistant("c")),
        [chat(user(p), assistant("x"), user("q"), assistant(p)) for p in "mn"] + chats(20, user("r"), assistant("c")),
    ),
    "labels that differ by case": (
        "label occurs in several forms",
        [label(f"t{i}", ["Spam", "spam"][i % 2]) for i in range(20)],
        [label(f"t{i}", ["spam", "spam-like"][i % 2]) for i in range(20)],
    ),
    "a rare label": (
        "times as many training rows have the label 'often'",
        [label(f"t{i}", "often" if i else "seldom") for i in range(40)],
        [label(f"t{i}", "often" if i % 5 else "seldom") for i in range(40)],
    ),
    "mostly prompts": (
        "of the tokens are answers to learn from",
        [row(f"{i} " + "word " * 90, "a") for i in range(20)],
        [row(f"{i} " + "word " * 90, "word " * 20) for i in range(20)],
    ),
    "numbers that may rate the answers": (
        "rows of train.jsonl have a number from 1 to 5 in the column 'rating', which may rate the answers",
        [row(f"q{i}", f"a{i}", rating=i % 5 + 1) for i in range(20)],
        [row(f"q{i}", f"a{i}", rating=5) for i in range(20)],
    ),
    "control characters": (
        "row contains control characters",
        [row("a bell \x07", "a"), *CLEAN],
        [row("a tab\tand a line\r\n", "a"), *CLEAN],
    ),
    "text that could not be decoded": (
        "row contains U+FFFD",
        [row("lost \ufffd", "a"), *CLEAN],
        [row("found \ufffc", "a"), *CLEAN],
    ),
}


@pytest.mark.parametrize("name", ON_ROWS)
def test_a_sentence_is_said_where_it_is_true_and_nowhere_else(tmp_path, renderer, name):
    sentence, rows, similar = ON_ROWS[name]
    options = {"overlength": "drop", "max_length": 2000}
    # All rows are trained on, so that the split does not decide which of them are compared.
    assert sentence in sentences(tmp_path, renderer, rows, pairs(3, 900), **options)
    silent = sentence.lstrip("0123456789 ")
    assert silent not in sentences(tmp_path, renderer, similar, pairs(3, 900), **options)


ON_BOTH_SIDES = {
    "held-out rows that repeat": (
        "held-out row repeats an earlier row word for word",
        (CLEAN, [row("q", "a"), row("q", "a")]),
        (CLEAN, [row("q", "a"), row("q", "b")]),
    ),
    "duplicates of the summary": (
        "1 duplicate",
        (CLEAN, [row("q", "a"), row("q", "a")]),
        (CLEAN, [row("q", "a"), row("Q", "a")]),
    ),
    "no duplicates in the summary": (
        "no duplicates",
        (CLEAN, pairs(3)),
        (CLEAN, [*pairs(3), *pairs(1)]),
    ),
    "held-out rows in train": (
        "held-out row is also a training row, word for word",
        ([*CLEAN, row("q", "a")], [row("q", "a"), *pairs(3)]),
        ([*CLEAN, row("q", "a", system="s")], [row("q", "a"), *pairs(3)]),
    ),
    "held-out rows in train but for case": (
        "held-out row is also a training row, except for case and blanks",
        ([*CLEAN, row("q", "a")], [row("Q", "a"), *pairs(3)]),
        ([*CLEAN, row("q", "a")], [row("q", "a"), *pairs(3)]),
    ),
    "held-out prompts in train": (
        "held-out prompts is also a training prompt",
        ([*CLEAN, row("q", "a")], [row("q", "b"), *pairs(3)]),
        ([*CLEAN, row("q", "a")], [row("a", "q"), *pairs(3)]),
    ),
    "labels that are not in train": (
        "held-out row has a label that does not occur in the training rows",
        ([label(f"t{i}", "ab"[i % 2]) for i in range(20)], [label("u", "a"), label("v", "c")]),
        ([label(f"t{i}", "ab"[i % 2]) for i in range(20)], [label("u", "a"), label("v", "b")]),
    ),
}


@pytest.mark.parametrize("name", ON_BOTH_SIDES)
def test_a_sentence_on_both_sides_is_said_where_it_is_true_and_nowhere_else(tmp_path, renderer, name):
    sentence, sides, similar = ON_BOTH_SIDES[name]
    assert sentence in sentences(tmp_path, renderer, *sides)
    assert sentence not in sentences(tmp_path, renderer, *similar)


def test_copies_of_a_weight_are_no_duplicates(tmp_path, renderer):
    assert "no duplicates" in sentences(tmp_path, renderer, CLEAN, weight=3.0)


@pytest.mark.parametrize(
    ("rows", "is_said"),
    [
        (CLEAN, True),
        ([{"text": f"document {i}"} for i in range(20)], False),
    ],
)
def test_notes_on_the_chat_template_need_rows_that_it_writes(tmp_path, byte_tokenizer, rows, is_said):
    renderer = ChatRenderer(byte_tokenizer, PREFIXED)
    assert (SAYS in sentences(tmp_path, renderer, rows)) is is_said


def test_the_empty_think_block_is_not_said_to_come_before_reasoning(byte_tokenizer, chat_template):
    (note,) = ChatRenderer(byte_tokenizer, chat_template("qwen3")).notes
    assert note == (
        "the chat template writes '<think>\\n\\n</think>\\n\\n' before each answer without reasoning, and the model learns to "
        "write it"
    )


@pytest.mark.parametrize(("count", "cut"), [(1, "1 answer was cut off"), (2, "2 answers were cut off"), (0, None)])
def test_answers_that_are_cut_off_are_counted(tmp_path, renderer, count, cut):
    rows = [*CLEAN, *(row(f"{i} " + "word " * 200, "a") for i in range(count))]
    text = sentences(tmp_path, renderer, rows, pairs(2), overlength="truncate", max_length=100)
    assert cut in text if cut else "cut off" not in text


def test_labels_beyond_the_counted_ones_are_not_said_to_be_unseen():
    labels = Labels()
    for number in range(10_001):
        labels.note("train", f"label {number}", "a:1")
    labels.note("eval", "label 10000", "b:1")
    assert label_findings(labels) == []
    few = Labels()
    for number in range(9_999):
        few.note("train", f"label {number}", "a:1")
    few.note("eval", "label 9999", "b:1")
    assert [finding.check for finding in label_findings(few)] == ["unseen labels"]


@pytest.mark.parametrize(
    ("broken", "sound"),
    [
        ("TANTÃ”T", "“AMANHÔ."),
        ("sÃ»r", "«AMANHû"),
        ("cÅ“ur", "”SMÅ”"),
        ("Å“uvre", "Der Buchstabe „Ä“ ist es"),
        ("Ã„rger", "TÄMÄ…"),
        ("itâ€™s", "“café”… he said"),
        ("ä¸\xadæ–‡", "«le café…»"),
        ("nÂ° 5", "n° 5"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет"),
        ("ðŸ˜€", "😀"),
        ("Ã‰tÃ©", "Été"),
    ],
)
def test_letters_before_punctuation_are_no_mojibake(broken, sound):
    assert [fault for fault, _ in encoding_faults(broken)] == ["mojibake"]
    assert list(encoding_faults(sound)) == []


FILES = {
    "semicolons": (
        "the columns are separated by semicolons",
        ("a.csv", "prompt;completion\n{};a\n"),
        ("a.csv", "prompt,completion\n{};,a;b\n"),
    ),
    "tabs": (
        "the columns are separated by tabs",
        ("a.csv", "prompt\tcompletion\n{}\ta\n"),
        ("a.tsv", "prompt\tcompletion\n{}\ta\n"),
    ),
    "a code page": (
        "the encoding is Windows-1252",
        ("a.csv", "prompt,completion\n{} où,là\n", "cp1252"),
        ("a.csv", "prompt,completion\n{} où,là\n", "utf-8"),
    ),
    "UTF-16": (
        "the encoding is UTF-16",
        ("a.csv", "prompt,completion\n{} où,là\n", "utf-16"),
        ("a.csv", "prompt,completion\n{} où,là\n", "utf-8-sig"),
    ),
    "a mark of UTF-16": (
        "without a byte order mark",
        ("a.csv", "prompt,completion\n{} ou,la\n", "utf-16-le"),
        ("a.csv", "prompt,completion\n{} ou,la\n", "utf-16"),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_note_on_a_file_is_made_where_it_is_true_and_nowhere_else(tmp_path, renderer, name):
    sentence, *files = FILES[name]
    for number, (file, text, *encoding) in enumerate(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        header, line = text.splitlines()
        lines = [header, *(line.format(f"q{i}") for i in range(20))]
        (folder / file).write_bytes("\n".join(lines).encode(*encoding))
        notes = prepare(request(folder / file), renderer, folder / "out").report.notes
        assert any(sentence in note for note in notes) is (number == 0), json.dumps(notes)
