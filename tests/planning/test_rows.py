"""The chat template's thinking is switched off where the rows hold none."""

import json
from pathlib import Path

import pytest
import trl
from pipeline_runs import config_for
from tiny_bases import tiny_base

from mlflow_finetune_plugin.planning.eval_settings import LONG_REFERENCES
from mlflow_finetune_plugin.planning.plan import make_plan
from mlflow_finetune_plugin.planning.rows import prepare_rows

QWEN3 = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"), "qwen3", chat_template=QWEN3)


def prepared(folder, base, *, turn=None, **data):
    """Return the chosen plan and the data of ten rows, in which ``turn`` changes the answers."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": str(n), **(turn or {})},
            ]
        }
        for n in range(10)
    ]
    folder.mkdir(exist_ok=True)
    train = folder / "rows.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(folder, base, data={"train": [{"path": str(train)}], "eval": 0.2, **data})
    return prepare_rows(make_plan(config), folder / "out")


def prompt_and_answer(plan, data):
    row = data.train[0]
    start = next(position for position, label in enumerate(row["labels"]) if label >= 0)
    return [plan.renderer.tokenizer.decode(ids) for ids in (row["input_ids"][:start], row["input_ids"][start:])]


def test_without_reasoning_the_empty_think_block_is_a_part_of_the_prompt(tmp_path, base):
    plan, data = prepared(tmp_path, base)
    assert plan.config.data.chat_template_kwargs == {"enable_thinking": False}
    assert plan.reasons["data.chat_template_kwargs"].startswith("enable_thinking: false: the rows hold no reasoning")
    assert (plan.renderer.answer_prefix, data.report.answer_prefix) == ("", "")
    prompt, answer = prompt_and_answer(plan, data)
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert "think" not in answer


@pytest.mark.parametrize(
    "turn", [{"reasoning_content": "Nine is a digit."}, {"content": "<think>\nA digit.\n</think>\n\n9"}]
)
def test_rows_with_reasoning_keep_the_template_as_it_is(tmp_path, base, turn):
    plan, data = prepared(tmp_path, base, turn=turn)
    assert plan.config.data.chat_template_kwargs == {}
    assert "data.chat_template_kwargs" not in plan.reasons
    assert data.report.thinking_turns == 10
    prompt, answer = prompt_and_answer(plan, data)
    assert "<think>" not in prompt
    assert answer.startswith("<think>")


def test_what_the_user_sets_stays(tmp_path, base):
    plan, data = prepared(tmp_path, base, chat_template_kwargs={"enable_thinking": True})
    assert plan.config.data.chat_template_kwargs == {"enable_thinking": True}
    assert prompt_and_answer(plan, data)[1].startswith("<think>")


def test_a_further_attempt_keeps_what_the_first_began_with(tmp_path, base):
    _, data = prepared(tmp_path / "a", base)
    plan, _ = prepared(tmp_path / "b", base)
    config = plan.config.model_copy(update={"data": plan.config.data.model_copy(update={"chat_template_kwargs": {}})})
    again, before = prepare_rows(make_plan(config), tmp_path / "out", may_choose=False)
    assert again.config.data.chat_template_kwargs == {}
    assert before.digest != data.digest
    assert prompt_and_answer(again, before)[1].startswith("<think>")


def test_plain_text_needs_no_choice(tmp_path, base):
    train = tmp_path / "rows.jsonl"
    train.write_text("".join(json.dumps({"text": f"number {n} is a number"}) + "\n" for n in range(10)))
    config = config_for(tmp_path, base, data={"train": [{"path": str(train)}], "eval": 0.2})
    plan, _ = prepare_rows(make_plan(config), tmp_path / "out")
    assert plan.config.data.chat_template_kwargs == {}


def test_other_templates_are_not_changed(tmp_path):
    plan, _ = prepared(tmp_path, tiny_base(tmp_path / "base"))
    assert plan.config.data.chat_template_kwargs == {}


@pytest.mark.parametrize(
    ("limit", "metric", "count"),
    [
        ("auto", "exact_match", 0),
        (4, "exact_match", 0),
        (3, "exact_match", 0),
        (2, "exact_match", 2),
        (2, "perplexity", 0),
    ],
)
def test_references_longer_than_answers_may_be_are_reported(tmp_path, base, limit, metric, count):
    """The held-out numbers have three tokens, and a fourth ends the turn."""
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"prompt": f"say {n}", "completion": f"{n}"} for n in range(100, 110)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(
        folder,
        base,
        data={"train": [{"path": str(folder / "rows.jsonl")}], "eval": 0.2},
        eval={"max_new_tokens": limit, "metrics": [metric]},
    )
    _, data = prepare_rows(make_plan(config), tmp_path / "out")
    assert [len(row.completion_ids) for row in data.eval_rows] == [4, 4]
    findings = [finding for finding in data.report.findings if finding.check == LONG_REFERENCES]
    assert [finding.count for finding in findings] == [count][: count and 1]
    assert all(str(finding).endswith("fix: remove eval.max_new_tokens, or set it to 3 or more") for finding in findings)
