import dataclasses
import json

import pytest
from data_requests import held_out, jsonl, pairs, request

from mlflow_finetune_plugin.data import DataFile, prepare, reader
from mlflow_finetune_plugin.data.conversations.split import hash_row
from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer
from mlflow_finetune_plugin.errors import DataError

# what comes out ------------------------------------------------------------------------------------------------------


def test_rows_become_ids_and_labels_by_hand(tmp_path, renderer, byte_tokenizer):
    train = jsonl(tmp_path / "train.jsonl", [{"prompt": "Why?", "completion": "yes"}])
    held_out = jsonl(tmp_path / "eval.jsonl", [{"prompt": "Who?", "completion": "a fox"}])
    prepared = prepare(request(train, (DataFile(held_out, "asked"),)), renderer, tmp_path / "out")
    question, answer = byte_tokenizer("Why?\n")["input_ids"], byte_tokenizer("yes<|endoftext|>")["input_ids"]
    assert prepared.train[:] == {
        "input_ids": [question + answer],
        "labels": [[-100] * len(question) + answer],
        "task": ["task"],
    }
    (row,) = prepared.eval_rows
    assert row.messages == ({"role": "user", "content": "Who?"},)
    assert row.prompt_ids == tuple(byte_tokenizer("Who?\n")["input_ids"])
    assert row.completion_ids == tuple(byte_tokenizer("a fox<|endoftext|>")["input_ids"])
    assert (row.reference, row.task, row.source, row.line) == ("a fox", "asked", "eval.jsonl", 1)
    assert prepared.validation["task"] == ["asked"]
    assert str(prepared.train.features["input_ids"]) == "List(Value('int32'))"
    assert str(prepared.train.features["labels"]) == "List(Value('int32'))"


def test_report_counts_every_row_by_hand(tmp_path, renderer):
    rows = [
        {"prompt": "What is 1?", "completion": "one"},
        {"prompt": "What is 2?", "completion": ""},
        {"prompt": "What is 1?", "completion": "one"},
        {"prompt": None, "completion": "x"},
        {"prompt": "WHAT is  1?", "completion": "uno"},
        {"prompt": "What is 6?", "completion": ""},
        {"prompt": "What is 7?", "completion": "seven"},
    ]
    train = jsonl(tmp_path / "train.jsonl", rows)
    held_out = jsonl(tmp_path / "eval.jsonl", [rows[0], {"prompt": "what is 7?", "completion": "7"}, *pairs(2, 50)])
    report = prepare(request(train, (DataFile(held_out, "t"),)), renderer, tmp_path / "out").report
    assert (report.train_rows, report.eval_rows, report.rows_used, report.skipped) == (4, 4, 8, 3)
    file = report.files[0]
    assert (file.name, file.layout, file.rows_read, file.rows_used) == (
        *("train.jsonl", "prompt_completion: prompt -> completion", 7, 4),
    )
    assert [(skip.reason, skip.rows, skip.lines) for skip in file.skipped] == [
        ("empty completion", 2, (2, 6)),
        ("null field", 1, (4,)),
    ]
    assert (report.duplicates, report.contradictions, report.leaked_prompts, report.leaked_rows) == (1, 1, 2, 1)
    assert report.summary() == (
        "usable with 3 warnings: 4 rows to train on, 4 held out; 3 skipped (2 empty completion, 1 null field), 1 duplicate"
    )
    assert len(report.warnings) == 3
    assert str(tmp_path) not in json.dumps(report.to_json())


def test_mask_samples_show_what_carries_loss(tmp_path, renderer):
    report = prepare(request(jsonl(tmp_path / "a.jsonl", pairs(20))), renderer, tmp_path / "out").report
    assert len(report.mask_samples) == 5
    question, answer = report.mask_samples[0]
    assert question["text"].startswith("What is ")
    assert (question["carries_loss"], answer["carries_loss"]) == (False, True)
    assert answer["text"].endswith(".<|endoftext|>")


def test_multi_turn_rows_are_evaluated_on_their_last_turn(tmp_path, byte_tokenizer, chat_template):
    turns = [{"role": role, "content": f"{role} {i}"} for i in range(2) for role in ("user", "assistant")]
    train = jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    renderer = ChatRenderer(byte_tokenizer, chat_template("qwen3"))
    prepared = prepare(request(train, (DataFile(train, "t"),)), renderer, tmp_path / "out")
    (row,) = prepared.eval_rows
    assert list(row.messages) == turns[:3]
    assert row.reference == "assistant 1"
    rendered = byte_tokenizer.apply_chat_template(
        turns[:3], chat_template=renderer.chat_template, add_generation_prompt=True, return_dict=False
    )
    assert list(row.prompt_ids) == rendered
    assert byte_tokenizer.decode(row.completion_ids) == "<think>\n\n</think>\n\nassistant 1<|im_end|>"
    assert (len(prepared.train), prepared.report.train_rows, prepared.report.unrolled) == (2, 1, 2)


def test_progress_reports_rows_done(tmp_path, renderer, monkeypatch):
    monkeypatch.setattr(reader, "BATCH_ROWS", 8)
    counts = []
    prepare(request(jsonl(tmp_path / "a.jsonl", pairs(20))), renderer, tmp_path / "out", counts.append)
    assert counts == [8, 16, 20]


def test_json_on_one_line_is_as_many_rows(tmp_path, renderer):
    train, eval_file = tmp_path / "a.json", tmp_path / "b.json"
    train.write_text(json.dumps(pairs(200)))
    eval_file.write_text(json.dumps(pairs(50, 900)))
    split = prepare(request(train), renderer, tmp_path / "split").report
    assert (split.train_rows, split.eval_rows) == (160, 40)
    half = request((DataFile(train, "t", 0.5),), (DataFile(eval_file, "t"),), max_eval_rows=20)
    prepared = prepare(half, renderer, tmp_path / "half")
    assert 60 < prepared.report.train.examples < 140
    assert len(prepared.eval_rows) == len({row.line for row in prepared.eval_rows}) == 20


# digests -------------------------------------------------------------------------------------------------------------


def test_digest_does_not_depend_on_the_batch_size(tmp_path, renderer, monkeypatch):
    train = jsonl(tmp_path / "a.jsonl", pairs(50))
    digests = set()
    for rows in (1, 7, 1000):
        monkeypatch.setattr(reader, "BATCH_ROWS", rows)
        prepared = prepare(request(train), renderer, tmp_path / f"out{rows}")
        digests.add((prepared.digest, prepared.eval_digest))
    assert len(digests) == 1
    assert all(len(digest) == 36 for digest in digests.pop())


def test_digest_changes_with_any_row_their_order_and_the_template(tmp_path, byte_tokenizer, renderer, chat_template):
    held_out = (DataFile(jsonl(tmp_path / "eval.jsonl", pairs(1, 900)), "t"),)

    def digest(rows, by=renderer):
        return prepare(request(jsonl(tmp_path / "a.jsonl", rows), held_out), by, tmp_path / "out").digest

    rows = pairs(5)
    changed = [*rows[:4], {**rows[4], "completion": "It is 5."}]
    chatml = ChatRenderer(byte_tokenizer, chat_template("qwen2_5"))
    assert len({digest(rows), digest(rows[::-1]), digest(rows[:4]), digest(changed), digest(rows, chatml)}) == 5
    assert digest(rows) == digest(pairs(5))


# the split -----------------------------------------------------------------------------------------------------------


def test_fraction_is_exact_seeded_and_keeps_duplicates_together(tmp_path, renderer):
    rows = pairs(100) + pairs(100)
    train = jsonl(tmp_path / "a.jsonl", rows)
    first = prepare(request(train, 0.2), renderer, tmp_path / "one")
    again = prepare(request(train, 0.2), renderer, tmp_path / "two")
    other = prepare(request(train, 0.2, seed=1), renderer, tmp_path / "three")
    assert (len(first.eval_rows), len(first.train)) == (40, 160)
    assert first.report.leaked_rows == 0
    assert [row.line for row in first.eval_rows] == [row.line for row in again.eval_rows]
    assert [row.line for row in first.eval_rows] != [row.line for row in other.eval_rows]


def test_default_holds_out_a_tenth_and_says_so(tmp_path, renderer):
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", pairs(50)), None), renderer, tmp_path / "out")
    assert len(prepared.eval_rows) == 5
    assert prepared.report.eval_split == (
        "by default 0.1 of the training rows, at most 500: 5 of 50 rows, by a hash with seed 0"
    )


def test_max_eval_rows_of_a_fraction_leaves_the_rest_in_train(tmp_path, renderer):
    prepared = prepare(
        request(jsonl(tmp_path / "a.jsonl", pairs(50)), 0.5, max_eval_rows=3), renderer, tmp_path / "out"
    )
    assert (len(prepared.eval_rows), len(prepared.train)) == (3, 47)


def test_max_eval_rows_of_a_file_samples_all_over_it(tmp_path, renderer):
    held_out = DataFile(jsonl(tmp_path / "eval.jsonl", pairs(200, 500)), "t")
    prepared = prepare(
        request(jsonl(tmp_path / "a.jsonl", pairs(5)), (held_out,), max_eval_rows=20), renderer, tmp_path / "out"
    )
    lines = [row.line for row in prepared.eval_rows]
    assert len(lines) == 20
    assert max(lines) > 100
    (skip,) = prepared.report.files[1].skipped
    assert (skip.reason, skip.rows) == ("over eval.max_rows", 180)


# weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "low", "high"), [(3.0, 300, 300), (0.5, 35, 65), (2.5, 235, 265)])
def test_weight_repeats_rows_and_takes_a_seeded_share(tmp_path, renderer, weight, low, high):
    held_out = (DataFile(jsonl(tmp_path / "eval.jsonl", pairs(1, 900)), "t"),)
    files = (DataFile(jsonl(tmp_path / "a.jsonl", pairs(100)), "t", weight),)
    prepared = prepare(request(files, held_out), renderer, tmp_path / "out")
    assert low <= len(prepared.train) <= high
    file = prepared.report.files[0]
    assert (file.weight, file.rows_used, file.rows_after_weight) == (weight, 100, len(prepared.train))
    assert prepared.report.duplicates == 0
    assert prepare(request(files, held_out), renderer, tmp_path / "two").digest == prepared.digest


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weight_has_to_be_positive(tmp_path, renderer, weight):
    files = (DataFile(jsonl(tmp_path / "a.jsonl", pairs(5)), "t", weight),)
    with pytest.raises(DataError, match="is not a positive number"):
        prepare(request(files), renderer, tmp_path / "out")


# rows that are too long ----------------------------------------------------------------------------------------------

LONG = [*pairs(3), {"prompt": "Why?", "completion": "yes " * 100}, {"prompt": "yes " * 100, "completion": "no"}]


def test_overlength_error_counts_all_and_names_lines_and_fix(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", LONG)
    with pytest.raises(DataError) as caught:
        prepare(request(train, held_out(tmp_path), max_length=32), renderer, tmp_path / "out")
    message = str(caught.value)
    assert "2 rows are longer than max_length (32 tokens): a.jsonl line 4 (" in message
    assert "data.overlength: drop (or truncate), or training.max_length: " in message
    assert not list((tmp_path / "out").iterdir())


def test_overlength_drop_is_counted(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", LONG)
    report = prepare(
        request(train, held_out(tmp_path), max_length=32, overlength="drop"), renderer, tmp_path / "out"
    ).report
    assert (report.train_rows, report.over_length, report.files[0].skipped[0].lines) == (3, 2, (4, 5))


def test_overlength_truncate_says_what_was_lost(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", LONG)
    prepared = prepare(
        request(train, held_out(tmp_path), max_length=32, overlength="truncate"), renderer, tmp_path / "out"
    )
    report = prepared.report
    assert [len(ids) for ids in prepared.train["input_ids"]][3] == 32
    assert (report.over_length, report.truncated, report.truncated_end_of_turn, report.truncated_answer) == (2, 2, 2, 1)
    assert [(skip.reason, skip.lines) for skip in report.files[0].skipped] == [("no loss token left", (5,))]
    assert any("lost the end-of-turn token" in warning for warning in report.warnings)


# plain text, several answers -----------------------------------------------------------------------------------------


def documents(count):
    return [{"text": f"Fox number {i} jumps over the lazy dog. " * 6} for i in range(count)]


def test_document_carries_loss_on_all_but_its_first_token(tmp_path, renderer, llama2_tokenizer, byte_tokenizer):
    train = jsonl(tmp_path / "a.jsonl", [{"text": "Hello there!"}, {"text": "The fox."}])
    held_out = (DataFile(jsonl(tmp_path / "b.jsonl", [{"text": "The dog."}]), "t"),)
    prepared = prepare(request(train, held_out), renderer, tmp_path / "out")
    ids = byte_tokenizer("Hello there!")["input_ids"] + [byte_tokenizer.eos_token_id]
    assert prepared.train[0]["input_ids"] == ids
    assert prepared.train[0]["labels"] == [-100, *ids[1:]]
    (row,) = prepared.eval_rows
    assert (row.messages, row.reference) == ((), "The dog.")
    assert [*row.prompt_ids, *row.completion_ids] == [
        *byte_tokenizer("The dog.")["input_ids"],
        byte_tokenizer.eos_token_id,
    ]
    assert len(row.prompt_ids) == 1
    with_bos = prepare(request(train, held_out), ChatRenderer(llama2_tokenizer), tmp_path / "bos")
    assert with_bos.eval_rows[0].prompt_ids == (llama2_tokenizer.bos_token_id,)


def test_long_documents_are_split_without_losing_a_token(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", documents(20))
    whole = prepare(request(train, 0.2), renderer, tmp_path / "whole")
    pieces = prepare(request(train, 0.2, max_length=16, overlength="split"), renderer, tmp_path / "pieces")
    assert max(map(len, pieces.train["input_ids"])) == 16
    assert pieces.report.train.loss_tokens == whole.report.train.loss_tokens
    assert pieces.report.eval.loss_tokens == whole.report.eval.loss_tokens
    learnt = [token for labels in pieces.train["labels"] for token in labels if token != -100]
    assert learnt == [token for labels in whole.train["labels"] for token in labels if token != -100]
    assert len(pieces.eval_rows) == len(pieces.validation) > pieces.report.eval_rows - 1
    assert sum(len(row.completion_ids) for row in pieces.eval_rows) == pieces.report.eval.loss_tokens


def test_virtual_tokens_start_every_row_for_training_and_count_in_max_length(tmp_path, renderer):
    train, first = jsonl(tmp_path / "a.jsonl", documents(20)), (300, 301, 302)
    options = {"overlength": "split", "validation": 0.2}
    plain = prepare(request(train, 0.2, max_length=16, **options), renderer, tmp_path / "plain")
    after = prepare(
        request(train, 0.2, max_length=19, virtual_token_ids=first, **options), renderer, tmp_path / "virtual"
    )
    for rows, expected in ((after.train, plain.train), (after.validation, plain.validation)):
        assert rows["input_ids"] == [[*first, *ids] for ids in expected["input_ids"]]
        assert rows["labels"] == [[-100] * 3 + labels for labels in expected["labels"]]
    assert after.eval_rows == plain.eval_rows
    assert after.report.train.length_quantiles["max"] == 19
    with pytest.raises(DataError, match=r"longer than max_length \(18 tokens\): a\.jsonl line 1 \(\d+\)"):
        prepare(request(train, 0.2, max_length=18, virtual_token_ids=first), renderer, tmp_path / "long")


def test_split_is_for_plain_text_alone(tmp_path, renderer):
    data_request = request(jsonl(tmp_path / "a.jsonl", LONG), held_out(tmp_path), max_length=32, overlength="split")
    with pytest.raises(DataError, match=r"2 rows are longer than max_length \(32 tokens\)"):
        prepare(data_request, renderer, tmp_path / "out")


def test_answers_of_one_row_stay_on_one_side(tmp_path, renderer):
    rows = [{"prompt": f"Name {i}", "completion": [f"{i}", f"{i}!", f"{i}?"]} for i in range(40)]
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", rows), 0.25), renderer, tmp_path / "out")
    (file,) = prepared.report.files
    assert (file.rows_read, file.conversations, file.rows_used) == (40, 120, 120)
    assert (len(prepared.eval_rows), len(prepared.train)) == (30, 90)
    assert (prepared.report.leaked_prompts, prepared.report.duplicates) == (0, 0)


def test_each_file_may_have_columns_of_its_own(tmp_path, renderer):
    csv = tmp_path / "tickets.csv"
    csv.write_text("body,reply,id\n" + "".join(f"question {i},answer {i},{i}\n" for i in range(6)))
    chat = jsonl(tmp_path / "chat.jsonl", pairs(5))
    files = (DataFile(csv, "t", columns={"prompt": "body", "completion": "reply"}), DataFile(chat, "c"))
    data_request = dataclasses.replace(request(chat), train=files)
    report = prepare(data_request, renderer, tmp_path / "out").report
    assert [(file.layout, file.rows_used) for file in report.files] == [
        ("prompt_completion: body -> reply", 6),
        ("prompt_completion: prompt -> completion", 5),
    ]


def test_trained_rows_are_known_by_their_hashes(tmp_path, renderer):
    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", pairs(20) + pairs(2))), renderer, tmp_path / "out")
    held_out = {row.reference for row in prepared.eval_rows}
    turns = [
        ({"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]})
        for row in pairs(20)
    ]
    expected = {hash_row(both, 0) for both in turns if both[1]["content"] not in held_out}
    assert set(prepared.trained_rows.tolist()) == expected
    assert len(prepared.trained_rows) == len(expected)


# real data -------------------------------------------------------------------------------------------------------


def test_an_earlier_result_stays_readable_when_its_folder_is_written_again(tmp_path, renderer):
    train = jsonl(tmp_path / "a.jsonl", pairs(50))
    earlier = prepare(request(train), renderer, tmp_path / "out")
    before = earlier.train[:]
    prepare(request(jsonl(tmp_path / "b.jsonl", pairs(2))), renderer, tmp_path / "out")
    assert earlier.train[:] == before


REAL_FILES = [
    ("banking77/test.csv", "label: text -> category", 3_080),
    ("chat_messages_demo/conversations.jsonl", "messages: messages", 128),
    ("soda_chat_subset/derived_messages.jsonl", "messages: messages", 704),
    ("gsm8k/test.jsonl.gz", "prompt_completion: question -> answer", 1_319),
]


@pytest.mark.parametrize(
    ("real_tokenizer", "name", "layout", "rows"),
    [
        # the large file with one tokenizer; the small file of the same data with both
        ("tinystories-656k-hd64", "banking77/train.csv.gz", "label: text -> category", 10_003),
        *((tokenizer, *file) for tokenizer in ("stories260k-hd64", "tinystories-656k-hd64") for file in REAL_FILES),
    ],
    indirect=["real_tokenizer"],
)
def test_real_data_is_read_recognised_and_encoded(tmp_path, dataset_folder, real_tokenizer, name, layout, rows):
    data_request = request(dataset_folder / name, None, overlength="drop", max_length=400)
    report = prepare(data_request, ChatRenderer(real_tokenizer), tmp_path / "out").report
    (file,) = report.files
    assert (file.layout, file.rows_read) == (layout, rows)
    left_out = {skip.reason for skip in file.skipped}
    assert left_out <= {"over length"}
    assert file.rows_used + sum(skip.rows for skip in file.skipped) == rows
    assert file.rows_used > rows // 2
    assert 0 < report.train.loss_tokens < report.train.tokens


@pytest.mark.parametrize(
    ("name", "layout", "rows", "conversations"),
    [
        ("self_instruct/seed_tasks.jsonl", "instances: instruction -> instances", 175, 175),
        ("self_instruct/user_oriented_instructions.jsonl", "instances: instruction -> instances", 252, 252),
        ("instruction_induction/execute/sum.json", "prompt_completion: input -> output", 100, 100),
        ("instruction_induction/execute/rhymes.json", "prompt_completion: input -> output", 100, 100),
        ("plain_text/c4_demo.jsonl.gz", "text: text", 300, 300),
        ("tinystories_sample/tinystories_train_first_2MiB.txt.gz", "text: text", 2317, 2317),
        ("plain_text/wiki_demo.txt.gz", "text: text", 30, 30),
    ],
)
def test_nested_numbered_and_plain_data_is_read(tmp_path, dataset_folder, renderer, name, layout, rows, conversations):
    overlength = "split" if layout == "text: text" else "drop"
    data_request = request(dataset_folder / name, None, overlength=overlength, max_length=2048)
    (file,) = prepare(data_request, renderer, tmp_path / "out").report.files
    assert (file.layout, file.rows_read, file.conversations) == (layout, rows, conversations)
    assert file.rows_used + sum(skip.rows for skip in file.skipped) == conversations


def test_self_instruct_is_read_when_its_tasks_are_named(tmp_path, dataset_folder, renderer):
    """The rows' name as the answer to the instruction: any two text columns can be named."""
    train = dataset_folder / "self_instruct" / "user_oriented_instructions.jsonl"
    columns = {"prompt": "instruction", "completion": "motivation_app"}
    prepared = prepare(request(train, columns=columns, ignore=("instances",)), renderer, tmp_path / "out")
    assert prepared.report.rows_used == 252


def test_trl_takes_the_data_as_it_is(tmp_path, renderer, byte_tokenizer):
    """The collator of trl pads ids and labels and changes neither."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    prepared = prepare(request(jsonl(tmp_path / "a.jsonl", pairs(20))), renderer, tmp_path / "out")
    examples = [{key: prepared.train[i][key] for key in ("input_ids", "labels")} for i in range(2)]
    batch = DataCollatorForLanguageModeling(pad_token_id=0)(examples)
    for i, example in enumerate(examples):
        length = len(example["input_ids"])
        assert batch["input_ids"][i, :length].tolist() == example["input_ids"]
        assert batch["labels"][i, :length].tolist() == example["labels"]
        assert set(batch["labels"][i, length:].tolist()) <= {-100}


def test_report_is_plain_json(tmp_path, renderer):
    report = prepare(request(jsonl(tmp_path / "a.jsonl", pairs(20))), renderer, tmp_path / "out").report
    assert json.loads(json.dumps(report.to_json())) == report.to_json()
    assert dataclasses.is_dataclass(report)
