"""Options of the objectives with rewards, as a recipe and -P set them."""

import pytest

from mlflow_finetune_plugin.config.absolute_paths import resolve_paths
from mlflow_finetune_plugin.config.run_config import load_config
from mlflow_finetune_plugin.errors import ConfigError
from mlflow_finetune_plugin.methods import Rollouts, load_method
from mlflow_finetune_plugin.planning.preflight import load_checked_config


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"prompt": "What is 1 plus 1?", "reference": "2"}\n' * 3)
    (folder / "finetune.yaml").write_text("data: data.jsonl\n")
    (folder / "reward.py").write_text("def score(completion):\n    return 1.0\n")
    return folder


def loaded(project, objective="grpo", recipe="", **overrides):
    (project / "finetune.yaml").write_text(f"data: data.jsonl\n{recipe}")
    return load_config(project, objective, overrides, caller=project.parent)


def test_a_reward_on_the_command_line_starts_in_the_callers_folder(project):
    config = loaded(project, reward="project/reward.py:score")
    (part,) = config.objective_options().rewards
    assert part.python == str(project / "reward.py:score")


def test_rewards_of_the_recipe_start_in_its_folder(project):
    grader = "{grader: {type: string_check, name: a, operation: eq, input: a, reference: a}}"
    config = resolve_paths(
        loaded(project, recipe=f"options: {{rewards: [reward.py, {grader}, {{python: reward.py, weight: 0.5}}]}}"),
        project,
    )
    parts = config.objective_options().rewards
    assert [part.python for part in parts] == [str(project / "reward.py"), None, str(project / "reward.py")]
    assert [part.weight for part in parts] == [1.0, 1.0, 0.5]


def test_one_reward_needs_no_list(project):
    config = loaded(project, recipe="options: {rewards: reward.py:score}")
    assert [part.python for part in config.objective_options().rewards] == ["reward.py:score"]


def test_a_run_without_a_reward_is_refused(project):
    with pytest.raises(ConfigError, match=r"options.rewards: there is none; fix: -P reward=reward.py:score"):
        loaded(project)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"batching": "packed"}, "padded, because TRL's trainer computes them"),
        (
            {"per_device_train_batch_size": "12", "gradient_accumulation_steps": "1"},
            "no multiple of num_generations = 8",
        ),
        ({"load_best_model_at_end": "true", "eval_steps": "5"}, "says nothing about the answers; fix: eval_reward"),
        ({"epsilon_high": "0.1"}, "epsilon_high is below epsilon"),
        ({"loss_type": "luspo"}, "needs importance_sampling_level sequence"),
        ({"loss_type": "cispo"}, "fix: epsilon_high: 5.0"),
        ({"num_generations": "1"}, "num_generations"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_loaded(project, overrides, words):
    with pytest.raises(ConfigError, match=words):
        loaded(project, reward="project/reward.py", **overrides)


def test_an_empty_range_of_rewards_is_refused(project):
    with pytest.raises(ConfigError, match="give the lowest and then the highest reward"):
        loaded(project, "rloo", reward="project/reward.py", reward_clip_range="[5, -5]")


def test_a_missing_file_and_a_missing_function_are_refused_before_a_run(project):
    for reward, words in {
        "project/rewrad.py": "does not exist",
        "project/reward.py:scor": "no function 'scor'",
    }.items():
        with pytest.raises(ConfigError, match=words):
            load_checked_config(project, "grpo", {"reward": reward}, caller=project.parent)


def test_best_weights_may_be_chosen_by_a_part_of_the_reward(project):
    metric = {"metric_for_best_model": "eval_rewards/score/mean", "load_best_model_at_end": "true", "eval_steps": "5"}
    assert (
        loaded(project, reward="project/reward.py", **metric).training.metric_for_best_model
        == "eval_rewards/score/mean"
    )


@pytest.mark.parametrize(("objective", "beta"), [("grpo", 0.04), ("rloo", 0.05)])
def test_defaults_are_those_that_were_measured(objective, beta):
    method = load_method("objective", objective)
    options = method.Options()
    assert (options.beta, options.num_generations) == (beta, 8)
    assert method.rollouts(options) == Rollouts(8, 256, 1, compares_with_start=True)
    assert method.learning_rate(2e-3, options)[0] == 5e-4
    if objective == "grpo":
        assert (options.loss_type, options.scale_rewards) == ("dr_grpo", "none")
