"""Graders in OpenAI's form: what each gives, and what is wrong with one by its place in the JSON."""

import json

import pytest
from reward_files import completion, completions, loaded

from mlflow_finetune_plugin.errors import ConfigError, RewardError
from mlflow_finetune_plugin.rewards.graders import grader_faults
from mlflow_finetune_plugin.rewards.graders.text_similarity import fuzzy_match, similarity


def check(operation, text="{{sample.output_text}}", reference="{{item.answer}}"):
    return {"type": "string_check", "name": "check", "input": text, "reference": reference, "operation": operation}


def similar(metric):
    return {
        "type": "text_similarity",
        "name": "similar",
        "input": "{{ sample.output_text }}",
        "reference": "{{item.answer}}",
        "evaluation_metric": metric,
    }


def graded(folder, grader, rows, **more):
    with loaded(folder, {"grader": grader, **more}) as rewards:
        return rewards.score(rows).parts[rewards.names[0]]


@pytest.mark.parametrize(
    ("operation", "expected"), [("eq", [1, 0, 0]), ("ne", [0, 1, 1]), ("like", [1, 1, 0]), ("ilike", [1, 1, 1])]
)
def test_string_checks(tmp_path, operation, expected):
    assert graded(tmp_path, check(operation), completions("Yes", "oh Yes!", "yes", answer="Yes")) == expected


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("fuzzy_match", 2 * 20 / (22 + 22)),
        ("bleu", (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** (1 / 4)),
        ("gleu", (5 + 3 + 1) / (6 + 5 + 4 + 3)),
        ("rouge_1", 5 / 6),
        ("rouge_2", 3 / 5),
        ("rouge_3", 1 / 4),
        ("rouge_4", 0.0),
        ("rouge_5", 0.0),
        ("rouge_l", 5 / 6),
    ],
)
def test_similarities_against_values_computed_by_hand(metric, expected):
    """Of six words the fourth differs, so 5 words, 3 pairs, 1 triple and no four are the same (BLEU counts half of one)."""
    text, reference = "the cat sat on the mat", "the cat sat at the mat"
    assert similarity(metric)(text, reference) == pytest.approx(expected)
    assert similarity(metric)(text, text) == pytest.approx(1.0)
    assert similarity(metric)("", text) == 0.0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("", "", 1.0), ("abc", "abc", 1.0), ("abc", "xyz", 0.0), ("this is a test", "this is a test!", 28 / 29), ("ab" * 200, "ba" * 200, 798 / 800), ("äöü", "äü", 4 / 5)],
)  # fmt: skip
def test_fuzzy_match_is_twice_the_common_subsequence_over_both_lengths(a, b, expected):
    assert fuzzy_match(a, b) == pytest.approx(expected)


def test_similarity_of_a_completion(tmp_path):
    assert graded(tmp_path, similar("rouge_l"), completions("a b c d", "x", answer="a b c d")) == [1.0, 0.0]


def test_templates_reach_into_json_and_lists(tmp_path):
    grader = check("eq", "{{sample.output_json.steps[1].value}}", "{{item.numbers[0]}}")
    rows = [
        completion('{"steps": [{}, {"value": 7}]}', 0, numbers=[7]),
        completion('{"steps": [{}]}', 1, numbers=[7]),
        completion("not JSON", 2, numbers=[7]),
    ]
    with loaded(tmp_path, {"grader": grader}) as rewards:
        scores = rewards.score(rows)
    assert scores.parts["check"] == [1.0, 0.0, 0.0]
    assert scores.reasons["check"][2] == "the completion has no {{sample.output_json.steps[1].value}}"


def test_a_column_that_is_missing_is_named(tmp_path):
    with pytest.raises(
        ConfigError, match="the rows have no column 'answer'; their columns: question; fix: correct the template"
    ):
        loaded(tmp_path, {"grader": check("eq")}, columns=["question"])
    with pytest.raises(
        RewardError,
        match=r"reward 'check' \(grader string_check\) failed at row 0 .*no \{\{item.answer\}\}; its columns: messages, question",
    ):
        graded(tmp_path, check("eq"), completions("a", question="x"))


@pytest.mark.process
def test_a_python_grader_runs_apart(tmp_path):
    source = "import os\ndef grade(sample, item):\n    return (sample['output_json'] or {}).get('n', 0) / item['of']"
    grader = {"type": "python", "name": "share", "source": source, "image_tag": "2025-05-08"}
    assert graded(tmp_path, grader, completions('{"n": 1}', "x", of=4)) == [0.25, 0.0]
    with pytest.raises(RewardError, match=r"KeyError: 'of'; at grader source:3 in grade: return"):
        graded(tmp_path, grader, completions("x"))
    with pytest.raises(ConfigError, match=r"defines no function grade\(sample, item\)"):
        loaded(tmp_path, {"grader": {**grader, "source": "x = 1"}})


@pytest.mark.process
def test_several_graders_are_combined_by_a_formula(tmp_path):
    source = "def grade(sample, item): return len(sample['output_text'])"
    grader = {
        "type": "multi",
        "name": "all",
        "graders": {"exact": check("eq"), "size": {"type": "python", "name": "size", "source": source}},
        "calculate_output": "max(0, 2 * exact - size ^ 2 / 100)",
    }
    with loaded(tmp_path, {"grader": grader, "weight": 0.5}) as rewards:
        scores = rewards.score(completions("Yes", "no", answer="Yes"))
    assert scores.parts == {"all": [pytest.approx(1.91), 0.0]}
    assert scores.total == [pytest.approx(0.955), 0.0]
    assert scores.reasons["all"] == ["exact 1, size 3", "exact 0, size 2"]


def test_a_formula_without_a_value_is_a_fault_of_its_row(tmp_path):
    grader = {"type": "multi", "name": "m", "graders": {"a": check("eq")}, "calculate_output": "1 / a"}
    with loaded(tmp_path, {"grader": grader, "on_error": "skip"}) as rewards:
        scores = rewards.score(completions("Yes", "no", answer="Yes"))
    assert scores.parts["m"] == [1.0, None]
    assert scores.skipped == 1
    assert "'1 / a' has no value for a 0" in scores.reasons["m"][1]


MULTI = {"type": "multi", "name": "m", "graders": {"a": check("eq")}, "calculate_output": "a"}


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("grader", "fault"),
    [
        ({"type": "string_chek", "name": "x"}, "grader.type: no grader type 'string_chek'; did you mean string_check?"),
        ({}, "grader.type: no grader type 'None'"),
        ({**check("eq"), "operation": "equals"}, "grader.operation: Input should be 'eq', 'ne', 'like' or 'ilike'"),
        ({**check("eq"), "refrence": "x"}, "grader.refrence: Extra inputs are not permitted"),
        ({k: v for k, v in check("eq").items() if k != "name"}, "grader.name: Field required"),
        ({**check("eq"), "input": "{{output_text}}"}, "grader.input: {{output_text}} is not a field; fix: begin it with one of: item, sample"),
        ({**check("eq"), "input": "{{sample.text}}"}, "grader.input: {{sample.text}} is not part of a sample"),
        ({**check("eq"), "reference": "{{item}}"}, "grader.reference: {{item}} names no column"),
        ({**check("eq"), "reference": "{{item.__class__.x()}} {{ 7*7 }}"}, "grader.reference: {{7*7}} is not a field"),
        (similar("meteor"), "grader.evaluation_metric: meteor needs the WordNet database"),
        (similar("cosine"), "grader.evaluation_metric: cosine needs an embedding model"),
        (similar("rouge"), "grader.evaluation_metric: no evaluation_metric 'rouge'; did you mean rouge_"),
        ({"type": "python", "name": "p", "source": "def grade(sample, item) return 1"}, "grader.source: is not Python"),
        ({"type": "score_model", "name": "s", "model": "m", "input": []}, "grader.input: List should have at least 1 item"),
        ({"type": "score_model", "name": "s", "model": "m", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "grader.input.0.content: is not text"),
        ({"type": "score_model", "name": "s", "model": "m", "input": [{"role": "user", "content": "x"}], "range": [1, 0]}, "grader.range: must have its lowest number first"),
        ({**MULTI, "graders": {"a": {**check("eq"), "operation": "x"}}}, "grader.graders.a.operation: Input should be"),
        ({**MULTI, "graders": {"a": MULTI}}, "grader.graders.a.type: no grader type 'multi'"),
        ({**MULTI, "graders": {"max": check("eq")}}, "grader.graders.max: is not a name for a formula"),
        ({**MULTI, "graders": {}}, "grader.graders: Dictionary should have at least 1 item"),
        ({**MULTI, "calculate_output": "a + b"}, "grader.calculate_output: names 'b'; fix: use one of the graders: a"),
        ({**MULTI, "calculate_output": "a.__class__"}, "grader.calculate_output: has 'a.__class__'"),
    ],
)  # fmt: skip
def test_a_wrong_grader_names_its_place_in_the_json(grader, fault):
    faults = grader_faults(json.loads(json.dumps(grader)))
    assert any(line.startswith(fault) for line in faults), faults


def test_all_problems_of_a_multi_grader_are_reported_together():
    wrong = {**check("eq"), "operation": "x"}
    faults = grader_faults({**MULTI, "graders": {"a": wrong, "b": wrong, "c": similar("cosine")}})
    assert [fault.partition(":")[0] for fault in faults] == [
        "grader.graders.a.operation",
        "grader.graders.b.operation",
        "grader.graders.c.evaluation_metric",
    ]
