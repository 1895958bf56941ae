"""Patterns that users write for layers may be matched; those that can stand still for hours may not, and none is tried."""

import re

import pytest

from mlflow_finetune_plugin.base_models.name_patterns import pattern_fault


@pytest.mark.parametrize(
    "pattern",
    [
        "q_proj",
        "model.layers.0.self_attn.q_proj",
        r".*layers\.1\..*(up|down)_proj",
        r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)",
        r"model\.layers\.(1[0-9]|2[0-3])\.mlp\.(up|down)_proj",
        r"^model\.layers\.\d+\.self_attn\.[qv]_proj$",
        r"(?:model\.)?layers\.[0-9]{1,2}\..*",
        "",
    ],
)
def test_usual_patterns_may_be_matched(pattern):
    assert pattern_fault(pattern) is None


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        (r"(x+x+)+y", "a repeated group"),
        (r"(.*)*q_proj!", "a repeated group"),
        (r"(a|a)*", "a repeated group"),
        (r"(ab?){0,40}c", "a repeated group"),
        (r".*.*.*.*q_proj", "too many repetitions"),
        (r"(a|a)" * 30, "too many repetitions"),
        (r"a?" * 40 + "a" * 40, "too many repetitions"),
        (r"(?=.*x).*", "a lookaround"),
        (r"(.)\1", "a lookaround, a backreference"),
        (r"(?(1)a|b)", "not a valid regular expression"),
        (r"(q_proj", "not a valid regular expression"),
        ("(" * 3000 + ")" * 3000, "has 6,000 characters"),
        ("(" * 2000 + ")" * 2000, "not a valid regular expression"),
    ],
)
def test_patterns_without_a_bound_are_refused(pattern, fault):
    assert fault in pattern_fault(pattern)


def test_the_slowest_pattern_that_may_be_matched_takes_no_time():
    """Of two repetitions of any character, on a long name that does not match."""
    pattern = r".*.*(a|b|c)!"
    assert pattern_fault(pattern) is None
    assert re.fullmatch(pattern, "model.layers.0." + "a" * 100) is None
