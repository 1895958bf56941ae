"""Rows as well-known data sets of preferences and of rewards have them on the hub, with all their columns."""

import json

import pytest
from shown_turns import read, shown

from mlflow_finetune_plugin.data.conversations.interpretation import ColumnSettings, interpret
from mlflow_finetune_plugin.errors import DataError

PENS = "\n\nHuman: what are some pranks with a pen i can do?\n\nAssistant: Are you looking for practical joke ideas?"
HH_RLHF = {
    "chosen": f"{PENS}\n\nHuman: yes\n\nAssistant: Here are some:\n\n1. Use invisible ink.\n\n2. Glue it.",
    "rejected": f"{PENS}\n\nHuman: yes\n\nAssistant: I cannot help with that.",
}
HH_TURNS = [
    "user: what are some pranks with a pen i can do?",
    "(assistant): Are you looking for practical joke ideas?",
    "user: yes",
]
QUESTION = {"role": "user", "content": "how can i develop a habit of drawing daily"}
DRAW, NAP = (
    {"role": "assistant", "content": text} for text in ("Draw for 5 minutes a day.\n\nThen 10.", "Take a nap.")
)
HABIT = (
    ["user: how can i develop a habit of drawing daily", "assistant: Draw for 5 minutes a day.\n\nThen 10."],
    ["user: how can i develop a habit of drawing daily", "assistant: Take a nap."],
)
SENTENCES = "Generate a sentence that describes all of this data: Midsummer House eatType restaurant; Midsummer House food Chinese"
MIDSUMMER, SORRY = (
    "Midsummer House is a Chinese restaurant.",
    " Sure! Here's a sentence: Midsummer House is a restaurant.",
)
HELPFUL = "You are an AI assistant. You will be given a task. You must generate a detailed and long answer."
ORCA = (
    [f"system: {HELPFUL}", f"user: {SENTENCES}", f"assistant: {MIDSUMMER}"],
    [f"system: {HELPFUL}", f"user: {SENTENCES}", f"assistant: {SORRY}"],
)


@pytest.mark.parametrize(
    ("row", "sides"),
    [
        pytest.param(
            HH_RLHF,
            (
                [*HH_TURNS, "assistant: Here are some:\n\n1. Use invisible ink.\n\n2. Glue it."],
                [*HH_TURNS, "assistant: I cannot help with that."],
            ),
            id="Anthropic/hh-rlhf",
        ),
        pytest.param(
            {
                "prompt": f"{PENS}\n\nHuman: yes\n\nAssistant:",
                "response": " Here are some.",
                "chosen": " Here are some.",
                "rejected": " No.",
            },
            ([*HH_TURNS, "assistant: Here are some."], [*HH_TURNS, "assistant: No."]),
            id="Dahoas/full-hh-rlhf",
        ),
        pytest.param(
            {
                "prompt": QUESTION["content"],
                "prompt_id": "086b3e24f29b8956a01059f79c56db35d118a06fb6b844b095737d042795cd43",
                "chosen": [QUESTION, DRAW],
                "rejected": [QUESTION, NAP],
                "messages": [QUESTION, DRAW],
                "score_chosen": 8.5,
                "score_rejected": 8.5,
            },
            HABIT,
            id="HuggingFaceH4/ultrafeedback_binarized",
        ),
        pytest.param(
            {"chosen": [QUESTION, DRAW], "rejected": [QUESTION, NAP], "score_chosen": 8.5, "score_rejected": 3.0},
            HABIT,
            id="trl-lib/ultrafeedback_binarized",
        ),
        pytest.param(
            {
                "source": "evol_instruct",
                "prompt": QUESTION["content"],
                "chosen": [QUESTION, DRAW],
                "chosen-rating": 4.25,
                "chosen-model": "gpt-4",
                "rejected": [QUESTION, NAP],
                "rejected-rating": 3.0,
                "rejected-model": "pythia-12b",
            },
            HABIT,
            id="argilla/ultrafeedback-binarized-preferences-cleaned",
        ),
        pytest.param(
            {
                "dataset": "argilla/ultrafeedback-binarized-preferences-cleaned",
                "chosen": [QUESTION, DRAW],
                "rejected": [QUESTION, NAP],
                "chosen_rating": 5.0,
                "rejected_rating": 1.0,
            },
            HABIT,
            id="argilla/dpo-mix-7k",
        ),
        pytest.param(
            {
                "prompt_id": "086b3e24",
                "prompt": QUESTION["content"],
                "chosen": [QUESTION, DRAW],
                "rejected": [QUESTION, NAP],
                "all_generated_responses": ["Draw for 5 minutes a day.", "Sleep first, then draw.", "Take a nap."],
                "all_rm_scores": [1.5, 0.25, -2.0],
            },
            HABIT,
            id="snorkelai/Snorkel-Mistral-PairRM-DPO-Dataset",
        ),
        pytest.param(
            {
                "source": "Airoboros",
                "chosen": [QUESTION, DRAW],
                "rejected": [QUESTION, NAP],
                "prompt": QUESTION["content"],
                "question": None,
            },
            HABIT,
            id="mlabonne/orpo-dpo-mix-40k",
        ),
        pytest.param(
            {"system": HELPFUL, "question": SENTENCES, "chosen": MIDSUMMER, "rejected": SORRY},
            ORCA,
            id="Intel/orca_dpo_pairs",
        ),
        pytest.param(
            {
                "system": HELPFUL,
                "input": SENTENCES,
                "chosen": MIDSUMMER,
                "rejected": SORRY,
                "generations": [MIDSUMMER, SORRY],
                "order": ["chosen", "rejected"],
                "labelling_model": "gpt-4-1106-preview",
                "labelling_prompt": [
                    {"content": "You are a helpful and precise assistant for checking answers.", "role": "system"},
                    {"content": f"[Question]\n{SENTENCES}\n\n\n[The Start of Assistant 1's Answer>\n", "role": "user"},
                ],
                "raw_labelling_response": "9 9\n\nBoth Assistant 1 and Assistant 2 answered the task well.",
                "rating": [9.0, 9.0],
                "rationale": "Both Assistant 1 and Assistant 2 answered the task well.",
                "status": "tie",
                "original_chosen": MIDSUMMER,
                "original_rejected": SORRY,
                "chosen_score": None,
                "in_gsm8k_train": False,
            },
            ORCA,
            id="argilla/distilabel-intel-orca-dpo-pairs",
        ),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "Name a planet."}],
                "chosen": {"from": "gpt", "value": "Mars."},
                "rejected": {"from": "gpt", "value": "The Moon."},
            },
            (["user: Name a planet.", "assistant: Mars."], ["user: Name a planet.", "assistant: The Moon."]),
            id="LLaMA-Factory's dpo_en_demo",
        ),
        pytest.param(
            {
                "qid": 11151234,
                "question": "Why is `[]` falsy?",
                "date": "2012/06/22",
                "metadata": ["https://example.org/questions/11151234", "https://example.org"],
                "response_j": "It is empty.",
                "response_k": "It is not.",
            },
            (
                ["user: Why is `[]` falsy?", "assistant: It is empty."],
                ["user: Why is `[]` falsy?", "assistant: It is not."],
            ),
            id="lvwerra/stack-exchange-paired",
        ),
        pytest.param(
            {
                "input": {
                    "messages": [{"role": "user", "content": "How cold is San Francisco today?"}],
                    "tools": [],
                    "parallel_tool_calls": True,
                },
                "preferred_output": [{"role": "assistant", "content": "I do not know today's weather."}],
                "non_preferred_output": [{"role": "assistant", "content": "It is not cold."}],
            },
            (
                ["user: How cold is San Francisco today?", "assistant: I do not know today's weather."],
                ["user: How cold is San Francisco today?", "assistant: It is not cold."],
            ),
            id="OpenAI's guide",
        ),
        pytest.param(
            {
                "messages": [
                    {"role": "system", "content": "You are useful."},
                    {"role": "user", "content": "Tell me tomorrow's weather"},
                    {"role": "assistant", "content": "Tomorrow's weather will be sunny"},
                ],
                "rejected_response": "I don't know",
            },
            (
                [
                    *("system: You are useful.", "user: Tell me tomorrow's weather"),
                    "assistant: Tomorrow's weather will be sunny",
                ],
                ["system: You are useful.", "user: Tell me tomorrow's weather", "assistant: I don't know"],
            ),
            id="ms-swift's guide",
        ),
        pytest.param(
            {"prompt": [QUESTION], "chosen": [DRAW], "rejected": [NAP]}, HABIT, id="an export of this project's votes"
        ),
    ],
)
def test_pairs(row, sides):
    (pair,) = read("pairs", row)
    assert (shown(pair.messages), shown(pair.rejected)) == sides
    (good, bad) = read("rated", row)
    assert (shown(good.messages), shown(bad.messages)) == sides
    (prompt,) = read("prompts", row)
    assert shown(prompt.messages) == sides[0][:-1]


@pytest.mark.parametrize(
    ("row", "turns", "is_good"),
    [
        pytest.param(
            {"prompt": [QUESTION], "completion": [NAP], "label": False},
            HABIT[1],
            False,
            id="trl-lib/kto-mix-14k",
        ),
        pytest.param(
            {
                "system": HELPFUL,
                "prompt": SENTENCES,
                "completion": MIDSUMMER,
                "label": True,
                "rating": 9.0,
                "status": "unchanged",
                "in_gsm8k_train": False,
            },
            ORCA[0],
            True,
            id="argilla/distilabel-intel-orca-kto",
        ),
        pytest.param({"messages": [QUESTION, DRAW], "label": True}, HABIT[0], True, id="LLaMA-Factory's kto_en_demo"),
    ],
)
def test_rated_answers(row, turns, is_good):
    (answer,) = read("rated", row)
    assert (shown(answer.messages), answer.is_good) == (turns, is_good)


CLIPS = "Natalia sold clips to 48 of her friends in April, and then half as many in May. How many altogether?"
WORKED = "In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72"


@pytest.mark.parametrize(
    ("row", "turns", "fields"),
    [
        pytest.param(
            {"question": CLIPS, "answer": WORKED},
            [f"user: {CLIPS}"],
            {"answer": WORKED, "reference": WORKED},
            id="openai/gsm8k",
        ),
        pytest.param(
            {
                "data_source": "openai/gsm8k",
                "prompt": [{"role": "user", "content": CLIPS}],
                "ability": "math",
                "reward_model": {"ground_truth": "72", "style": "rule"},
                "extra_info": {"answer": WORKED, "index": 0, "question": CLIPS, "split": "train"},
            },
            [f"user: {CLIPS}"],
            {
                "data_source": "openai/gsm8k",
                "ability": "math",
                "reward_model": {"ground_truth": "72", "style": "rule"},
                "extra_info": {"answer": WORKED, "index": 0, "question": CLIPS, "split": "train"},
            },
            id="verl's gsm8k",
        ),
        pytest.param(
            {"problem": "What is 2 + 2?", "level": "Level 1", "type": "Algebra", "solution": r"It is $\boxed{4}$."},
            ["user: What is 2 + 2?"],
            {
                "level": "Level 1",
                "type": "Algebra",
                "solution": r"It is $\boxed{4}$.",
                "reference": r"It is $\boxed{4}$.",
            },
            id="MATH",
        ),
        pytest.param(
            {
                "problem": "What is 2 + 2?",
                "solution": "It is 4.",
                "messages": [
                    {"role": "user", "content": "What is 2 + 2?"},
                    {"role": "assistant", "content": "It is 4."},
                ],
            },
            ["user: What is 2 + 2?"],
            {
                "solution": "It is 4.",
                "messages": [
                    {"role": "user", "content": "What is 2 + 2?"},
                    {"role": "assistant", "content": "It is 4."},
                ],
                "reference": "It is 4.",
            },
            id="AI-MO/NuminaMath-TIR",
        ),
        pytest.param(
            {"prompt": "SUBREDDIT: r/tea\n\nTL;DR:", "completion": " I like tea."},
            ["user: SUBREDDIT: r/tea\n\nTL;DR:"],
            {"completion": " I like tea.", "reference": " I like tea."},
            id="trl-lib/tldr",
        ),
        pytest.param(
            {
                "messages": [{"role": "user", "content": "Is the text safe? I like tea."}],
                "compliant": "yes",
                "explanation": "It is about tea.",
            },
            ["user: Is the text safe? I like tea."],
            {"compliant": "yes", "explanation": "It is about tea."},
            id="OpenAI's guide to reinforcement fine-tuning",
        ),
        pytest.param(
            {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a", "model": "m", "rank": 1.0}]},
            ["user: q"],
            {"answers": [{"answer": "a", "model": "m", "rank": 1.0}]},
            id="berkeley-nest/Nectar",
        ),
    ],
)
def test_prompts(row, turns, fields):
    (prompt,) = read("prompts", row)
    assert (shown(prompt.messages), json.loads(prompt.fields)) == (turns, fields)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        pytest.param(
            {
                "prompt": "\n\nHuman: q\n\nAssistant: ",
                "answers": [{"answer": "a", "model": "gpt-4", "rank": 1.0}, {"answer": "b", "model": "m", "rank": 2.0}],
                "turns": 1,
                "num_responses": 7,
                "source": ["sharegpt"],
                "good_natured": True,
            },
            "the column 'answers' holds several answers of each prompt with their ranks",
            id="berkeley-nest/Nectar",
        ),
        pytest.param(
            {
                "source": "sharegpt",
                "instruction": "q",
                "models": ["gpt-4"],
                "completions": [{"model": "gpt-4", "response": "a", "overall_score": 7.5, "principle": "honesty"}],
                "correct_answers": ["None"],
                "incorrect_answers": ["None"],
            },
            "the column 'completions' holds several answers of each prompt with their ranks",
            id="openbmb/UltraFeedback",
        ),
    ],
)
def test_preferences_of_another_form_are_refused_by_name(row, words):
    for form in ("pairs", "rated"):
        with pytest.raises(DataError, match=words):
            interpret([row], ColumnSettings(form=form))
