"""Training with rewards: TRL's losses on our prompts, checkpoints that continue exactly, and errors that name their row."""

import json
import math

import pytest
import torch
import trl
from peft import PeftModel
from prompt_rows import contains, prompt_rows, renderer_of
from tiny_bases import tiny_base
from training.trained import adapted, events, logged, run
from transformers import AutoTokenizer

from mlflow_finetune_plugin.errors import RewardError, TrainingError
from mlflow_finetune_plugin.methods import load_method
from mlflow_finetune_plugin.training.checkpoints import Checkpoint
from mlflow_finetune_plugin.training.rollouts.trainer import StartOfTraining
from mlflow_finetune_plugin.training.saving import Saves

pytestmark = pytest.mark.train

ASKED = [
    (f"my {noun} number {i}?", "e") for i, noun in enumerate(["parcel", "kettle", "bill", "contract", "fox", "dog"])
]
SETTINGS = {
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def renderer(base):
    return renderer_of(base)


def options(objective, **values):
    common = {"rewards": [contains("e")], "num_generations": 4, "max_completion_length": 6, "start_prompts": 4}
    return load_method("objective", objective).Options(**{**common, **values})


def train_on(base, renderer, folder, objective="grpo", questions=ASKED, more=None, **settings):
    return run(
        base,
        folder,
        rows=prompt_rows(renderer, questions),
        objective=objective,
        objective_options=options(objective, **(more or {})),
        renderer=renderer,
        **{**SETTINGS, **settings},
    )


def trl_log(base, renderer, folder, objective):
    """The log of TRL's own trainer on the same prompts, with a second adapter as its reference."""
    trainer_class, config_class = {
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    }[objective]

    class Plain(trainer_class):
        def _tokenize_prompts(self, prompts):
            return [list(ids) for ids in prompts], None, {}

    ours = options(objective)
    more = {"loss_type": ours.loss_type, "scale_rewards": ours.scale_rewards} if objective == "grpo" else {}
    args = config_class(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=6,
        beta=ours.beta,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_steps=3,
        logging_steps=1,
        logging_first_step=True,
        seed=0,
        data_seed=0,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
        **more,
    )
    rows = prompt_rows(renderer, ASKED).select_columns(["input_ids"]).rename_column("input_ids", "prompt")
    trainer = Plain(
        model=adapted(base),
        reward_funcs=lambda completions, **_: [float("e" in text) for text in completions],
        args=args,
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(base),
    )
    trainer.train()
    return [log for log in trainer.state.log_history if "reward" in log]


@pytest.mark.parametrize("objective", ["grpo", "rloo"])
def test_losses_rewards_and_kl_are_those_of_trl_with_a_second_adapter(base, renderer, tmp_path, objective):
    """The start is not the base here: ``adapted`` has weights that change answers, as a version that is continued."""
    _, model = train_on(base, renderer, tmp_path, objective)
    expected = trl_log(base, renderer, tmp_path / "trl", objective)
    for name in ("reward", "kl", "entropy", "completions/mean_length", "frac_reward_zero_std", "grad_norm"):
        values = [value for _, value in logged(tmp_path, f"train/{name}")]
        assert values == pytest.approx([log[name] for log in expected], rel=1e-4, abs=1e-6), name
    assert max(value for _, value in logged(tmp_path, "train/kl")) > 0
    assert max(value for _, value in logged(tmp_path, "train/reward_std")) > 0
    assert list(model.peft_config) == ["default"]


def test_saved_adapter_has_the_tensors_of_an_imitated_one(base, renderer, tmp_path):
    _, model = train_on(base, renderer, tmp_path, more={"beta": 0.1})
    model.save_pretrained(tmp_path / "adapter")
    plain = adapted(base)
    plain.save_pretrained(tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == sorted(
        path.name for path in (tmp_path / "plain").iterdir()
    )
    loaded = PeftModel.from_pretrained(plain.get_base_model(), tmp_path / "adapter", adapter_name="again")
    assert loaded.state_dict().keys() >= model.state_dict().keys()


def test_the_reference_is_the_start_whatever_the_weights_are_now(base):
    model = adapted(base)
    ids = torch.tensor([[7, 8, 9, 10]])
    start = StartOfTraining(model)
    before = model(ids).logits.detach().clone()
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.1)
    after = model(ids).logits.detach().clone()
    assert not torch.allclose(before, after)
    assert torch.equal(start(input_ids=ids).logits, before)
    assert torch.equal(model(ids).logits, after)


@pytest.mark.parametrize(("objective", "step"), [("grpo", 1), ("grpo", 4), ("rloo", 3)])
def test_resumed_training_is_bit_equal(base, renderer, tmp_path, objective, step):
    """Step 1 and 3 are between two updates with the same completions; step 4 is in the second pass over the prompts."""
    checkpoints = []
    settings = {"max_steps": 6, "save_steps": 1, "logging_steps": 2, "more": {"num_iterations": 2, "epsilon_high": 0.3}}
    settings |= {"questions": ASKED[:3]}
    saves = Saves(tmp_path / "checkpoints", 9, lambda: {}, checkpoints.append)
    whole, expected = train_on(base, renderer, tmp_path / "whole", objective, saves=saves, **settings)
    torch.manual_seed(99)  # whatever the process did before
    checkpoint = Checkpoint(tmp_path / "checkpoints" / f"checkpoint-{step}", step, {})
    again, model = train_on(base, renderer, tmp_path / "again", objective, checkpoint=checkpoint, **settings)
    for (name, tensor), (_, value) in zip(expected.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(tensor, value), name
    assert again.losses == whole.losses
    for name in ("train/reward", "train/entropy", "train/kl", "train/tokens"):
        assert logged(tmp_path / "again", name) == logged(tmp_path / "whole", name), name


def test_what_is_logged_is_recorded_with_each_part_of_the_reward(base, renderer, tmp_path):
    rewards = [contains("e"), contains("o", weight=0.5, name="round")]
    train_on(
        base, renderer, tmp_path, more={"rewards": rewards}, eval_rows=prompt_rows(renderer, ASKED[:2]), eval_steps=2
    )
    figures = ["reward", "reward_std", "frac_reward_zero_std", "entropy", "kl", "repeated_text", "rewards_skipped"]
    figures += ["rewards/has_e/mean", "rewards/round/mean", "completions/mean_length", "completions/clipped_ratio"]
    for name in [*figures, "clip_ratio/region_mean", "tokens_per_second", "tokens"]:
        assert len(logged(tmp_path, f"train/{name}")) == 3, name
    assert [step for step, _ in logged(tmp_path, "validation/reward")] == [2, 3]
    first = {name: logged(tmp_path, f"train/{name}")[0][1] for name in figures}
    assert first["reward"] == pytest.approx(first["rewards/has_e/mean"] + 0.5 * first["rewards/round/mean"])


def test_tables_show_the_same_prompts_and_the_best_and_worst_of_the_step(base, renderer, tmp_path):
    train_on(base, renderer, tmp_path)
    tables = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("completions-*.json"))]
    assert len(tables) == 3
    assert tables[0]["columns"] == [
        "shown as",
        "row",
        "prompt",
        "reference",
        "completion",
        "reward",
        "has_e",
        "reasons",
    ]
    same = [[row[2] for row in table["data"] if row[0] == "same prompts"] for table in tables]
    assert same[0] == same[1] == same[2] == [question for question, _ in ASKED[:4]]
    best = [row[5] for row in tables[-1]["data"] if row[0] == "best of the step"]
    worst = [row[5] for row in tables[-1]["data"] if row[0] == "worst of the step"]
    assert min(best) >= max(worst)
    artifacts = [event["folder"] for event in events(tmp_path, "artifact")]
    assert artifacts == ["completions"] * 4  # the start's, and three


def test_tables_and_the_check_of_the_start_change_nothing_of_the_training(base, renderer, tmp_path, monkeypatch):
    _, expected = train_on(base, renderer, tmp_path / "with")
    from mlflow_finetune_plugin.training.rollouts.completion_table import CompletionTables
    from mlflow_finetune_plugin.training.rollouts.start_check import StartCheck

    monkeypatch.setattr(CompletionTables, "on_step_end", lambda *_, **__: None)
    monkeypatch.setattr(StartCheck, "on_train_begin", lambda *_, **__: None)
    _, model = train_on(base, renderer, tmp_path / "without")
    for (name, tensor), (_, value) in zip(expected.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(tensor, value), name


def test_a_reward_that_fails_ends_the_training_and_names_the_row(base, renderer, tmp_path):
    broken = contains("e")
    broken["grader"]["reference"] = "{{item.reference}}"
    questions = [*ASKED[:5], ("no reference here", None)]
    with pytest.raises(RewardError, match=r"reward 'has_e' .* failed at row 5 \('no reference here'\)"):
        train_on(base, renderer, tmp_path, questions=questions, more={"rewards": [broken]})


def test_a_reward_that_may_be_skipped_is_counted(base, renderer, tmp_path):
    broken = contains("e", on_error="skip")
    broken["grader"]["reference"] = "{{item.reference}}"
    questions = [*ASKED[:3], ("no reference here", None)]
    train_on(
        base, renderer, tmp_path, questions=questions, more={"rewards": [broken, contains("o")], "start_check": False}
    )
    assert sum(value for _, value in logged(tmp_path, "train/rewards_skipped")) > 0
    assert all(math.isfinite(value) for _, value in logged(tmp_path, "train/reward"))


def test_a_start_without_a_signal_is_refused_with_the_reason_before_the_first_step(base, renderer, tmp_path):
    never = {"rewards": [contains("this is never said")]}
    with pytest.raises(
        TrainingError, match=r"100% of 4 sampled prompts give no signal.*fix: easier prompts.*start_check"
    ):
        train_on(base, renderer, tmp_path, more=never)
    assert logged(tmp_path, "start/flat_groups") == [(0, 1.0)]
    assert logged(tmp_path, "start/pass_at_4") == [(0, 0.0)]
    assert not logged(tmp_path, "train/reward")
    assert (tmp_path / "at_start.json").exists()


def test_a_start_without_a_signal_is_noted_where_the_recipe_says_so(base, renderer, tmp_path):
    train_on(base, renderer, tmp_path, more={"rewards": [contains("this is never said")], "start_check": False})
    assert any("give no signal" in event["text"] for event in events(tmp_path, "note"))
    assert len(logged(tmp_path, "train/reward")) == 3


def test_lack_of_memory_says_how_to_make_the_same_step_in_smaller_parts(base, renderer, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trl.GRPOTrainer, "compute_loss", refuse)
    with pytest.raises(TrainingError, match="per_device_train_batch_size=4 -P gradient_accumulation_steps=2"):
        train_on(base, renderer, tmp_path)


def test_prompt_learning_is_refused_with_its_reason(base, renderer, tmp_path):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(TrainingError, match=r"prompt_tuning cannot be trained with rewards.*fix: -P adaptation=lora"):
        train_on(base, renderer, tmp_path, model=model)
