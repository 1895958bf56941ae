"""Rows of prompts as the data room writes them, and a reward that needs no process."""

import json

import datasets
from transformers import AutoTokenizer

from mlflow_finetune_plugin.data.tokens.renderer import ChatRenderer

IGNORED = -100


def renderer_of(base):
    return ChatRenderer(AutoTokenizer.from_pretrained(base), None)


def prompt_rows(renderer, questions):
    """Rows for (question, reference) pairs; a reference of None is a row without one."""
    conversations = [[{"role": "user", "content": question}] for question, _ in questions]
    ids = [encoded[0].input_ids for encoded in renderer.encode_prompts(conversations)]
    fields = [{} if reference is None else {"reference": reference} for _, reference in questions]
    return datasets.Dataset.from_dict(
        {
            "input_ids": ids,
            "labels": [[IGNORED] * len(row) for row in ids],
            "task": ["t"] * len(ids),
            "messages": [json.dumps(messages) for messages in conversations],
            "fields": [json.dumps(row) for row in fields],
        }
    )


def contains(letter, **more):
    """1 for a completion with this letter, else 0."""
    grader = {
        "type": "string_check",
        "name": f"has_{letter}",
        "operation": "like",
        "input": "{{sample.output_text}}",
        "reference": letter,
    }
    return {"grader": grader, **more}
