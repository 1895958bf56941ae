"""Rows as OpenAI, Axolotl, ms-swift, LLaMA-Factory, TRL and the hub's data sets write them: used as they mean it, or refused by name."""

from data_requests import jsonl, request

from mlflow_finetune_plugin.data.preparation import prepare

SYSTEM, USER, ASSISTANT = ({"role": r, "content": f"{r}."} for r in ("system", "user", "assistant"))


def trained_text(prepared, tokenizer):
    """Return each example as text with what carries loss in brackets."""
    return [
        "".join(f"[{part['text']}]" if part["carries_loss"] else part["text"] for part in sample)
        for sample in prepared.report.mask_samples
    ]


def test_valid_rows_of_openai_are_all_used(tmp_path, renderer, byte_tokenizer):
    conversations = [
        [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}],
        [{**USER, "content": [{"type": "text", "text": "parts"}]}, ASSISTANT],
        [ASSISTANT, USER, ASSISTANT],
        [USER, USER, ASSISTANT],
        [USER, SYSTEM, ASSISTANT],
    ]
    train = jsonl(tmp_path / "a.jsonl", [{"messages": turns} for turns in conversations])
    held_out = request(train).train
    prepared = prepare(request(train, held_out), renderer, tmp_path / "out")
    assert prepared.report.skipped == 0
    end = "<|endoftext|>"
    assert trained_text(prepared, byte_tokenizer) == [
        f"user.\nassistant.{end}user.\n[assistant.{end}]",
        f"parts\n[assistant.{end}]",
        f"assistant.{end}user.\n[assistant.{end}]",
        f"user.\nuser.\n[assistant.{end}]",
        f"user.\nsystem.\n[assistant.{end}]",
    ]
    assert [note for note in prepared.report.notes if "4 assistant turns are context" in note]  # two on each side
    assert all("weight" not in turn for row in prepared.eval_rows for turn in row.messages)
