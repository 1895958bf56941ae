"""Recipe and overrides: every fault at once, each with its place, value and nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlflow_finetune_plugin.config.absolute_paths import resolve_paths
from mlflow_finetune_plugin.config.run_config import load_config
from mlflow_finetune_plugin.errors import ConfigError


def load(folder: Path, overrides: dict[str, str] | None = None, entry_point: str = "lora", caller: Path | None = None):
    return load_config(folder, entry_point, overrides or {}, caller=caller or folder)


def problems(folder: Path, overrides: dict[str, str] | None = None, entry_point: str = "lora") -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, overrides, entry_point)
    return caught.value.problems


def recipe(folder: Path, text: str) -> Path:
    (folder / "finetune.yaml").write_text(text)
    return folder


def test_recipe_alone_makes_a_config(tmp_path):
    config = load(
        recipe(
            tmp_path, "base_model: some/model\ndata: {train: a.jsonl, eval: 0.2}\noptions: {rank: 8}\nregister: bot\n"
        )
    )
    assert config.base_model.name == "some/model"
    assert [file.path for file in config.data.train] == ["a.jsonl"]
    assert config.data.eval == 0.2
    assert config.adaptation_options().rank == 8
    assert config.register_as.name == "bot"
    assert (config.adaptation, config.objective) == ("lora", "sft")


def test_overrides_alone_make_a_config(tmp_path):
    config = load(
        tmp_path,
        {"base_model": "m", "data": "t.jsonl", "eval_data": "e.jsonl", "register": "bot", "learning_rate": "1e-4"},
    )
    assert config.training.learning_rate == 1e-4
    assert config.data.eval[0].path == str(tmp_path / "e.jsonl")
    assert config.register_as.name == "bot"


def test_override_beats_the_file_and_keeps_its_neighbours(tmp_path):
    recipe(tmp_path, "data: {train: a.jsonl}\nbase_model: {name: m, dtype: float32}\n")
    config = load(tmp_path, {"base_model": "other"})
    assert (config.base_model.name, config.base_model.dtype) == ("other", "float32")


def test_one_column_can_be_named_without_the_others(tmp_path):
    project = recipe(tmp_path, "data: {train: a.csv, columns: {prompt: question, system: rules}}\n")
    config = load(project, {"data.columns.prompt": "body", "data.columns.completion": "reply"})
    assert config.data.columns == {"prompt": "body", "system": "rules", "completion": "reply"}
    assert "data.columns" in problems(project, {"data.columns.prompt.x": "body"})[0]


def test_ignored_columns_are_a_name_or_a_list(tmp_path):
    project = recipe(tmp_path, "data: {train: [{path: a.csv, ignore: id}], prompt_template: '{{ a }}'}\n")
    config = load(project, {"data.ignore": "context"})
    assert (config.data.ignore, config.data.train[0].ignore) == (["context"], ["id"])
    assert load(project, {"data.ignore": "[a, b]"}).data.ignore == ["a", "b"]


def test_override_values_are_yaml(tmp_path):
    config = load(tmp_path, {"data": "[a.jsonl, {path: b.jsonl, task: two, weight: 2.0}]", "forgetting": "false"})
    assert [(file.task, file.weight) for file in config.data.train] == [(None, 1.0), ("two", 2.0)]
    assert config.eval.forgetting is False


def test_paths_of_the_file_belong_to_the_file_and_paths_of_overrides_to_the_caller(tmp_path):
    project, caller = tmp_path / "project", tmp_path / "caller"
    project.mkdir(), caller.mkdir()
    recipe(project, "data: {train: a.jsonl}\neval: {forgetting: text.txt}\n")
    config = resolve_paths(load(project, {"eval_data": "e.jsonl"}, caller=caller), project)
    assert config.data.train[0].path == str(project / "a.jsonl")
    assert config.data.eval[0].path == str(caller / "e.jsonl")
    assert config.eval.forgetting == str(project / "text.txt")


def test_all_faults_come_in_one_answer(tmp_path):
    recipe(
        tmp_path,
        "base_model: {name: m, dtpye: float32}\n"
        "data: {train: [{path: a.jsonl, wieght: 2}], eval: 1.5}\n"
        'options: {rank: "16", aplha: 3}\n'
        "training: {learning_rate: fast, num_train_epochs: true}\n"
        "eval: {metrics: [exact_mtch]}\n"
        "register: {name: base}\n"
        "trainig: {}\n",
    )
    lines = problems(tmp_path, {"rnk": "3", "name": "x"})
    expected = [
        ("finetune.yaml:1", "base_model.dtpye", "did you mean base_model.dtype?"),
        ("finetune.yaml:2", "data.train.0.wieght", "did you mean data.train.0.weight?"),
        ("finetune.yaml:2", "data.eval = 1.5", "number above 0 and below 1"),
        ("finetune.yaml:3", "options.rank = '16'", "expected integer at least 1 or auto"),
        ("finetune.yaml:3", "options.aplha (= 3)", "did you mean options.alpha?"),
        ("finetune.yaml:4", "training.learning_rate = 'fast'", "expected number above 0 or auto"),
        ("finetune.yaml:4", "training.num_train_epochs = True", "expected number"),
        ("finetune.yaml:5", "exact_mtch", "exact_match"),
        ("finetune.yaml:6", "register.name = 'base'", "reserved"),
        ("finetune.yaml:7", "trainig", "did you mean training?"),
        ("-P rnk", "(= 3)", "did you mean rank?"),
        ("-P name", "several sections", "base_model.name, register.name"),
    ]
    for source, key, hint in expected:
        assert any(line.startswith(source) and key in line and hint in line for line in lines), (
            source,
            key,
            hint,
            lines,
        )
    assert len(lines) == len(expected)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [
        ("rank", "0", "expected integer at least 1 or auto"),
        ("rank", "-4", "expected integer at least 1 or auto"),
        ("alpha", "0", "expected number above 0 or auto"),
    ],
)
def test_numbers_that_no_model_can_take_are_refused_before_any_spend(tmp_path, key, value, hint):
    (problem,) = problems(tmp_path, {"data": "a.jsonl", key: value})
    assert problem.endswith(f"options.{key} = {value}: {hint}")


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["base", "a/b", "a:b", "bot@champion", "bot.promoting", " bot", ".."])
def test_names_that_registry_or_serving_cannot_carry_are_refused(tmp_path, name):
    (problem,) = problems(tmp_path, {"data": "a.jsonl", "register": f"'{name}'"})
    assert "register.name" in problem


@pytest.mark.parametrize(
    ("entry_point", "hint"),
    [("lorra", "did you mean lora?"), ("main", "pick one of: lora"), ("x", "pick one of: lora")],
)
def test_unknown_entry_point_is_answered_with_the_choices(tmp_path, entry_point, hint):
    (problem,) = problems(tmp_path, {"data": "a.jsonl"}, entry_point)
    assert hint in problem


def test_missing_data_says_how_to_give_it(tmp_path):
    assert problems(tmp_path) == ["no training data; fix: add data.train to finetune.yaml or -P data=FILE"]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("data: {train: a\n", "finetune.yaml:"),
        ("data: {train: a}\ndata: {train: b}\n", "occurs twice"),
        ("- a\n- b\n", "expected keys"),
    ],
)
def test_broken_yaml_is_told_with_its_line(tmp_path, text, hint):
    assert hint in problems(recipe(tmp_path, text))[0]


def test_yaml_numbers_and_words_mean_what_they_say(tmp_path):
    config = load(recipe(tmp_path, "data: {train: no}\ntraining: {learning_rate: 2e-4, adam_epsilon: 1e-8}\n"))
    assert config.data.train[0].path == "no"
    assert config.training.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            "gate: {votes: {alfa: 0.2}}",
            "unknown key register.gate.votes.alfa (= 0.2); did you mean register.gate.votes.alpha?",
        ),
        ("gate: {votes: {alpha: 7}}", "register.gate.votes.alpha = 7: expected number at least 1e-06 and below 0.5"),
        ("gate: {regressions: [{data: x, metrc: y}]}", "register.gate.regressions.0.metric is missing"),
        ("watch: {drift: []}", "register.watch.drift = []: expected {at_most, nats_at_most, alpha}"),
        ("watch: 3", "register.watch = 3: expected {proof, errors, vote_drift, drift}"),
    ],
)
def test_a_fault_of_a_section_within_a_section_names_its_key(tmp_path, section, message):
    (tmp_path / "finetune.yaml").write_text(f"data: train.jsonl\nregister:\n  name: bot\n  {section}\n")
    assert f"finetune.yaml:4: {message}" in problems(tmp_path)


def test_validation_rows_that_nothing_measures_are_refused(tmp_path):
    recipe(tmp_path, "base_model: m\ndata: {train: a.jsonl, validation: 0.1}\n")
    (problem,) = problems(tmp_path)
    assert problem.endswith("these rows would be neither trained on nor measured; fix: set training.eval_steps")
    assert load(tmp_path, {"eval_steps": "5"}).data.validation == 0.1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("{loss_type: [sft]}", "sft alone does not use the worse answers"),
        ("{loss_type: [sigmoid, sft], loss_weights: [1.0]}", "options.loss_weights has 1 values, and loss_type 2"),
        ("{loss_type: [exo_pair]}", "needs label_smoothing above 0"),
        ("{label_smoothing: 0.1}", "label_smoothing is not used by these losses"),
        ("{loss_type: [sigmod]}", "sigmod"),
        ("{beta: 0}", "options.beta"),
    ],
)
def test_options_of_dpo_that_do_not_fit_together_are_reported_with_their_line(tmp_path, options, fault):
    (problem,) = problems(recipe(tmp_path, f"data: pairs.jsonl\noptions: {options}\n"), entry_point="dpo")
    assert problem.startswith("finetune.yaml:2: options.")
    assert fault in problem


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            "eval: {metrics: [preference_accuracy, exact_match]}",
            "eval.metrics: exact_match compares answers, and reward trains",
        ),
        ("eval: {forgetting: general.txt}", "eval.forgetting is not measured for a reward model"),
        (
            "register: {name: r, precisions: [bfloat16]}",
            "register.precisions: a reward model is not served; fix: remove it",
        ),
        ("register: {name: r, gate: {latency: {p95_ms: 10}}}", "register.gate.latency: no version can pass"),
        ("register: {name: r, gate: {gain: {through: serving}}}", "register.gate.gain.through: no version can pass"),
        (
            "training: {metric_for_best_model: eval_mean_token_accuracy, load_best_model_at_end: true, eval_steps: 2}",
            "reward does not measure it; fix: pick one of: eval_loss, ",
        ),
        ("options: {center_rewards_coefficient: -1}", "options.center_rewards_coefficient"),
    ],
)
def test_settings_that_need_answers_are_problems_of_a_reward_model(tmp_path, text, fault):
    (problem,) = problems(recipe(tmp_path, f"data: p.jsonl\n{text}\n"), entry_point="reward")
    assert problem.startswith("finetune.yaml:2: ")
    assert fault in problem
    chosen = load(recipe(tmp_path, "data: p.jsonl\neval: {metrics: [preference_accuracy]}\n"), {}, "reward")
    assert (chosen.adaptation, chosen.objective) == ("lora", "reward")


def test_settings_that_an_objective_does_not_use_are_problems(tmp_path):
    text = "data: p.jsonl\ntraining: {label_smoothing_factor: 0.1, metric_for_best_model: eval_rewards/margins, "
    text += "load_best_model_at_end: true, eval_steps: 2}\n"
    (problem,) = problems(recipe(tmp_path, text), entry_point="dpo")
    assert "training.label_smoothing_factor is not used by dpo" in problem
    (problem,) = problems(tmp_path, {"label_smoothing_factor": "0", "metrics": "preference_accuracy"}, "kto")
    assert "eval.metrics: preference_accuracy compares the answers of a pair" in problem
    (problem,) = problems(tmp_path)
    assert "'eval_rewards/margins': sft does not measure it; fix: pick one of: eval_loss, " in problem
    assert (
        load(tmp_path, {"label_smoothing_factor": "0"}, "dpo").training.metric_for_best_model == "eval_rewards/margins"
    )


def test_a_metric_that_chooses_nothing_is_a_problem(tmp_path):
    text = "data: p.jsonl\ntraining: {eval_steps: 2, metric_for_best_model: eval_loss}\n"
    (problem,) = problems(recipe(tmp_path, text))
    assert "metric_for_best_model chooses nothing by itself; fix: set training.load_best_model_at_end: true" in problem
    for chosen in ({"load_best_model_at_end": "true"}, {"early_stopping_patience": "2"}):
        assert load(tmp_path, chosen).training.metric_for_best_model == "eval_loss"


@pytest.mark.parametrize("reference", ["models:/bot/3", "models:/bot@champion", "runs:/0123abcd/model", "bot@champion"])
def test_a_start_is_named_by_the_recipe_or_an_override(tmp_path, reference):
    project = recipe(tmp_path, f"data: {{train: a.jsonl}}\nstart_from: {reference}\n")
    for config in (load(project), load(tmp_path, {"start_from": reference})):
        assert resolve_paths(config, tmp_path).start_from == reference
        assert (config.adaptation, config.is_adaptation_default) == ("lora", True)


def test_a_folder_to_start_from_is_relative_to_the_recipe_or_the_caller(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "model").mkdir(parents=True)
    recipe(here, "data: {train: a.jsonl}\nstart_from: model\n")
    assert resolve_paths(load(here, caller=there), here).start_from == str(here / "model")
    assert resolve_paths(load(here, {"start_from": "model"}, caller=there), here).start_from == str(there / "model")


def test_a_named_adaptation_is_not_replaced_by_that_of_the_start(tmp_path):
    recipe(tmp_path, "data: {train: a.jsonl}\nadaptation: lora\nstart_from: models:/bot/1\n")
    assert not load(tmp_path).is_adaptation_default
    assert not load(tmp_path, {"adaptation": "ia3"}).is_adaptation_default
    assert not load(recipe(tmp_path, "data: {train: a.jsonl}")).is_adaptation_default


@pytest.mark.parametrize("value", ["3", "[a, b]", "''"])
def test_a_start_that_is_no_text_is_refused(tmp_path, value):
    (problem,) = problems(recipe(tmp_path, f"data: {{train: a.jsonl}}\nstart_from: {value}\n"))
    assert "start_from = " in problem
    assert "expected text; fix: models:/NAME/VERSION" in problem
