import pytest

from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.gate.canary_policy import CanaryPolicy
from mlflow_finetune_plugin.promotion.config import canary_policy, load_promotion_config


def test_a_canary_as_it_is_written():
    assert canary_policy("5, 25,50%", None, None) == CanaryPolicy((5, 25, 50), step_s=600, least_answers=100)
    assert canary_policy("5", None, None, "0.02") == CanaryPolicy((5,), failures_at_most=0.02)
    assert canary_policy("0.5", "90s", "7") == CanaryPolicy((0.5,), step_s=90, least_answers=7)
    assert canary_policy(None, None, None) is None


def test_parameters_of_a_run_are_checked_before_it(tmp_path):
    (tmp_path / "finetune.yaml").write_text("register: {name: bot}")
    given = {"canary": "5,50", "step": "2h", "least_answers": "10"}
    config = load_promotion_config(tmp_path, "promote", given, caller=tmp_path)
    assert canary_policy(config.canary, config.step, config.least_answers) == CanaryPolicy((5, 50), 7200, 10)
    wrong = {"canary": "five", "step": "soon", "least_answers": "-1", "failures_at_most": "few"}
    with pytest.raises(ConfigError) as refused:
        load_promotion_config(tmp_path, "promote", wrong, caller=tmp_path)
    assert [problem.partition(";")[0] for problem in refused.value.problems] == [
        "-P canary 'five': expected percentages",
        "-P canary step 'soon' is not a duration",
        "-P least answers '-1'",
        "-P failures at most 'few'",
    ]
    with pytest.raises(ConfigError, match="least answers without canary"):
        load_promotion_config(tmp_path, "promote", {"least_answers": "5"}, caller=tmp_path)
