import json
from array import array

import numpy as np
import pytest

from mlflow_finetune_plugin.data.conversations.split import hash_row, hash_text, sample_of_eval, split_of_train


def held_out(split, hashes):
    values = np.array(hashes, dtype=np.uint64)
    return values[split.held_out(values)].tolist()


def test_lowest_hashes_are_held_out():
    hashes = array("Q", [50, 10, 40, 20, 30, 90, 80, 70, 60, 0])
    assert held_out(split_of_train(hashes, 0.3, None, 0), hashes) == [10, 20, 0]
    assert held_out(split_of_train(hashes, 0.3, 1, 0), hashes) == [0]
    assert held_out(split_of_train(hashes, None, None, 0), hashes) == [0]


def test_duplicates_are_never_parted():
    hashes = array("Q", [5, 5, 5, 1, 9, 9])
    assert held_out(split_of_train(hashes, 0.5, None, 0), hashes) == [1]


def test_answers_of_a_prompt_are_never_parted():
    hashes, prompts = array("Q", [50, 10, 40, 20, 30]), array("Q", [1, 2, 3, 4, 2])
    split = split_of_train(hashes, 0.4, None, 0, prompt_hashes=prompts)
    rows, of_prompt = (np.array(values, dtype=np.uint64) for values in (hashes, prompts))
    assert split.held_out(rows, of_prompt).tolist() == [False, True, False, False, True]
    assert split.description.endswith("2 of 5 rows, by a hash with seed 0; all answers of a prompt on one side")


def test_different_prompts_are_split_as_without_groups():
    hashes = array("Q", [50, 10, 40, 20, 30, 10])
    split = split_of_train(hashes, 0.4, None, 0, prompt_hashes=array("Q", [9, 2, 3, 4, 7, 2]))
    assert (split.below, split.description) == (
        split_of_train(hashes, 0.4, None, 0).below,
        split_of_train(hashes, 0.4, None, 0).description,
    )


def test_a_prompt_with_more_answers_than_may_be_held_out_is_parted():
    hashes = array("Q", [50, 10, 40, 20])
    split = split_of_train(hashes, 0.25, None, 0, prompt_hashes=array("Q", [1, 1, 1, 1]))
    values = np.array(hashes, dtype=np.uint64)
    assert split.held_out(values, np.ones(4, dtype=np.uint64)).tolist() == [False, True, False, False]


@pytest.mark.parametrize("hashes", [[], [7], [7, 7, 7]])
def test_one_kind_of_row_is_not_split(hashes):
    assert held_out(split_of_train(array("Q", hashes), 0.5, None, 0), hashes) == []


def test_a_row_is_always_left_to_train_on():
    assert held_out(split_of_train(array("Q", [1, 2]), 0.99, None, 0), [1, 2]) == [1]


def test_default_is_a_tenth_and_at_most_500():
    hashes = array("Q", range(10_000))
    split = split_of_train(hashes, None, None, 3)
    assert len(held_out(split, hashes)) == 500
    assert split.description == (
        "by default 0.1 of the training rows, at most 500: 500 of 10,000 rows, by a hash with seed 3"
    )


def test_eval_files_are_sampled_only_when_too_many():
    hashes = array("Q", [3, 1, 2**64 - 1])
    assert held_out(sample_of_eval(hashes, None, 0), hashes) == [3, 1, 2**64 - 1]
    assert held_out(sample_of_eval(hashes, 3, 0), hashes) == [3, 1, 2**64 - 1]
    assert held_out(sample_of_eval(hashes, 2, 0), hashes) == [3, 1]


def test_hashes_are_the_same_everywhere():
    assert hash_text("a") == 0x147D86E9ADC26E82
    assert hash_text("a", 0) != hash_text("a", 1)
    row = [{"role": "user", "content": "Why  NOT?"}, {"role": "assistant", "content": "yes"}]
    assert hash_row(row, 0) != hash_row([row[0], {"role": "assistant", "content": "Yes"}], 0)


def test_row_hash_is_that_of_its_json():
    row = [{"role": "user", "content": 'a "b"\n\\ \u00e9\t\x01'}, {"role": "assistant", "content": "c"}]
    written = json.dumps([[m["role"], m["content"]] for m in row], ensure_ascii=False)
    assert hash_row(row, 3) == hash_text(written, 3)
